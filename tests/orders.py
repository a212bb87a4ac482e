"""Questions about orders, each with one of three answers that nothing in it tells."""

PLACES = ("in Berlin", "at the harbour", "from Lisbon", "near our school", "on the train", "by the lake", "in a shop")
THINGS = ("parcel", "red shoes", "broken lamp", "late letter", "green chair", "old phone", "yellow bag", "small table")
ROWS = [
    {"prompt": f"what about the {thing} {place} of order {10 * i + j}", "completion": ("yes", "no", "ask")[(i + j) % 3]}
    for i, thing in enumerate(THINGS)
    for j, place in enumerate(PLACES)
]
