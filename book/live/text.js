// Words to tokens and back, as the organisms' tokenizers have it: every word is a token.

export class Tokenizer {
  /** @param {object} file - the content of tokenizer.json */
  constructor({ model, added_tokens, normalizer, pre_tokenizer, post_processor }) {
    if (model.type !== "WordLevel" || pre_tokenizer?.type !== "WhitespaceSplit") {
      throw new Error(`a tokenizer of the kind ${model.type} is not supported`);
    }
    this.ids = new Map(Object.entries(model.vocab));
    this.words = [];
    for (const [word, id] of this.ids) this.words[id] = word;
    this.unknown = this.ids.get(model.unk_token);
    this.special = new Set();
    for (const { id, content, special } of added_tokens) {
      this.ids.set(content, id);
      this.words[id] = content;
      if (special) this.special.add(id);
    }
    const escaped = added_tokens.map(({ content }) => content.replace(/[^\w\s]/g, "\\$&"));
    this.added = new RegExp(`(${escaped.join("|")})`);
    this.normalise = normaliser(normalizer);
    const template = post_processor?.single ?? [];
    this.before = template.filter((part) => part.SpecialToken).map((part) => this.ids.get(part.SpecialToken.id));
    if (template.length && !template.at(-1).Sequence) throw new Error("a tokenizer that puts tokens behind a text is not supported");
  }

  /** The tokens of a text's words, without those that the tokenizer puts first (`before`). */
  encode(text) {
    const ids = [];
    for (const part of text.split(this.added)) {
      if (this.added.test(part)) ids.push(this.ids.get(part));
      else for (const word of this.normalise(part).split(/\s+/).filter(Boolean)) ids.push(this.ids.get(word) ?? this.unknown);
    }
    return ids;
  }

  /** Tokens as text, without special ones. */
  decode(ids) {
    return ids.filter((id) => !this.special.has(id)).map((id) => this.words[id]).join(" ");
  }

  /** The words of a text that the model has never read. */
  strange(text) {
    return this.normalise(text).split(/\s+/).filter((word) => word && !this.ids.has(word));
  }
}

function normaliser(step) {
  switch (step?.type) {
    case undefined: return (text) => text;
    case "Lowercase": return (text) => text.toLowerCase();
    case "Replace": {
      const pattern = step.pattern.Regex === undefined ? step.pattern.String : new RegExp(step.pattern.Regex, "gu");
      return (text) => text.replaceAll(pattern, () => step.content);
    }
    case "Sequence": {
      const steps = step.normalizers.map(normaliser);
      return (text) => steps.reduce((changed, next) => next(changed), text);
    }
    default: throw new Error(`a tokenizer that normalises by ${step.type} is not supported`);
  }
}
