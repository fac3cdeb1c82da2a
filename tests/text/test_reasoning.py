"""Lines that say which image tokens an edit changes."""

from hypothesis import given
from hypothesis import strategies as st

from nextstep.text.reasoning import Region, change_words, region_in

GRID = (8, 8)


@st.composite
def regions(draw: st.DrawFn) -> Region:
    top, left = draw(st.integers(0, 7)), draw(st.integers(0, 7))
    return Region(top, left, draw(st.integers(top + 1, 8)), draw(st.integers(left + 1, 8)))


@given(regions())
def test_a_region_is_read_as_it_was_written(region: Region) -> None:
    said = f"dog left, white background; {change_words(region, GRID)}; white background"
    assert region_in(said, GRID) == (None if region.covers(GRID) else region)
    assert len(region.places(GRID)) == (region.bottom - region.top) * (region.right - region.left)


def test_regions_count_rows_and_columns_from_one() -> None:
    assert change_words(Region(0, 4, 4, 8), GRID) == "change rows 1-4 columns 5-8"
    assert Region(1, 2, 2, 4).places((3, 5)) == [7, 8]
    assert Region(0, 0, 2, 2).grown(1, (8, 8)) == Region(0, 0, 3, 3)


def test_a_region_outside_of_the_grid_is_none() -> None:
    for words in ("rows 0-4 columns 1-4", "rows 5-4 columns 1-4", "rows 1-9 columns 1-4"):
        assert region_in(f"change {words}", GRID) is None
    assert region_in("move the dog to the left", GRID) is None
    assert region_in("change all", GRID) is None
