"""Several examples in one row, so that padding is not computed: first-fit over a window of open rows."""

from collections.abc import Sequence

OPEN_ROWS = 64


def first_fit(
    input_lengths: Sequence[int], target_lengths: Sequence[int], max_inputs: int, max_targets: int
) -> list[list[int]]:
    """Bins of example numbers; in each, inputs and targets fit one row. Every example is in exactly one bin.

    An example goes to the first open bin with room for both its parts; of more than OPEN_ROWS bins the oldest
    is closed, so that an example costs the same however many there are. Never more bins than with one open bin, as
    SeqIO packs.
    """
    done: list[list[int]] = []
    open_bins: list[list] = []  # [inputs left, targets left, members]
    for number, (inputs, targets) in enumerate(zip(input_lengths, target_lengths, strict=True)):
        for position, bin_ in enumerate(open_bins):
            if bin_[0] >= inputs and bin_[1] >= targets:
                bin_[0] -= inputs
                bin_[1] -= targets
                bin_[2].append(number)
                if bin_[0] == 0 or bin_[1] == 0:
                    done.append(open_bins.pop(position)[2])
                break
        else:
            open_bins.append([max_inputs - inputs, max_targets - targets, [number]])
            if len(open_bins) > OPEN_ROWS:
                done.append(open_bins.pop(0)[2])
    return done + [bin_[2] for bin_ in open_bins]
