"use strict";

// Renders formulas with KaTeX, whose file is the argument: answers each line [formula, options] with a line
// [result, error], until its input is closed.
const katex = require(process.argv[2]);
require("readline").createInterface({input: process.stdin}).on("line", (line) => {
  let answer;
  try { answer = [katex.renderToString(...JSON.parse(line)), null]; }
  catch (error) { answer = [null, error.message]; }
  console.log(JSON.stringify(answer));
});
