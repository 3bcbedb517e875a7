"""The suite's own power: planted faults and right engines, judged side by side."""
