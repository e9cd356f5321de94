"""Clips in NExT-QA's form, and what is said of those that are not."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.sets.clips import clips

HEAD = "video,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4"
LINE = "7,12,8,6,what does the dog do,2,0,TN,runs,sleeps,eats,barks,swims"


def written(folder: Path, *lines: str, n_frames: int = 12, head: str = HEAD) -> Path:
    """A data set with one video, whose frames tell their number by their grey."""
    (folder / "val.csv").write_text("\n".join([head, *(lines or [LINE])]))
    (folder / "frames" / "7").mkdir(parents=True)
    for i in range(n_frames):
        pixels = np.full((6, 8, 3), i, np.uint8)
        Image.fromarray(pixels).save(folder / "frames" / "7" / f"{i + 1}.png")  # 10 stands before 2 by name
    return folder


def test_questions_come_with_evenly_spaced_frames_in_their_order(tmp_path: Path) -> None:
    (clip,) = clips(written(tmp_path), n_frames=4)
    assert (clip.question, clip.options[clip.answer], clip.kind) == ("what does the dog do", "eats", "TN")
    assert (clip.group, clip.misleading) == ("temporal", None)
    assert [int(np.asarray(frame)[0, 0, 0]) for frame in clip.frames] == [0, 4, 7, 11]


def test_a_drawn_part_is_as_large_as_is_asked_for(tmp_path: Path) -> None:
    folder = written(tmp_path, *[LINE.replace("the dog", f"dog {i}") for i in range(9)])
    assert len(clips(folder, n_frames=2)) == 9
    drawn = [clip.question for clip in clips(folder, n_frames=2, n=4, seed=1)]
    assert len(set(drawn)) == 4
    assert drawn == [clip.question for clip in clips(folder, n_frames=2, n=4, seed=1)]


def test_a_misleading_option_may_be_named(tmp_path: Path) -> None:
    (clip,) = clips(written(tmp_path, f"{LINE},3", head=f"{HEAD},misleading"))
    assert clip.misleading == 3


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (LINE.replace(",2,0,TN", ",5,0,TN"), r"val.csv, line 2: answer='5' is no option: .* 0 to 4"),
        (LINE.replace(",2,0,TN", ",eats,0,TN"), "answer='eats' is no option"),
        (LINE.replace("runs,sleeps,eats,barks,swims", ",,eats,,"), "no wrong option, only 'eats'"),
        (LINE.replace("barks", ""), "the option a3 is empty: give five"),
        (LINE.replace("barks", "runs"), "two of its options are the same"),
        (LINE.replace(",TN,", ",XY,"), "type='XY': expected one that begins with C, T or D"),
        (f"{LINE},2", "misleading=2 is the right option, and has to be a wrong one"),
        (f"{LINE},9", "misleading='9' is no option"),
    ],
)
def test_items_that_are_none_are_refused_by_their_line(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        clips(written(tmp_path, line, head=f"{HEAD},misleading"))


def test_videos_that_lack_frames_or_mix_sizes_are_refused(tmp_path: Path) -> None:
    folder = written(tmp_path)
    with pytest.raises(
        ValueError, match="7 has 12 frames, and 13 are asked for: take fewer, or extract more"
    ):
        clips(folder, n_frames=13)
    Image.new("RGB", (4, 4)).save(folder / "frames" / "7" / "12.png")
    with pytest.raises(ValueError, match=r"frames of unequal size \(4x4, 8x6\): extract all with the same"):
        clips(folder, n_frames=4)
    for file in (folder / "frames" / "7").glob("*"):
        file.unlink()
    with pytest.raises(FileNotFoundError, match=r"no frames in .*7: put a video's frames there"):
        clips(folder)


def test_a_folder_without_its_table_says_what_it_has(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="has to hold one CSV, and it has: none"):
        clips(tmp_path)
    written(tmp_path, head="video,question")
    with pytest.raises(LookupError, match="missing: answer, type, a0"):
        clips(tmp_path)
