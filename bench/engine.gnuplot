# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
# The durations of steps of prefill on four cards in bench/results/h200x4_engine.md, from what --json wrote.
# gnuplot bench/engine.gnuplot
set terminal svg size 900,480 font "sans-serif,13" background "white"
set output "bench/results/engine.svg"
set title "4 ranks, an H200 each, prefill of 4096 tokens a rank, other traffic from pass 48 on"
set xlabel "pass"
set ylabel "milliseconds of a step"
set xrange [0:141]
set yrange [35:120]
set grid ytics
set key top center horizontal
data = "bench/results/engine.dat"
plot data using 1:2 with lines lw 2 lc rgb "#7f7f7f" title "none", \
     data using 1:4 with linespoints lw 1 pt 7 ps 0.3 lc rgb "#d62728" title "seed", \
     data using 1:6 with lines lw 1.5 lc rgb "#ff7f0e" title "every-batch", \
     data using 1:5 with lines lw 2 lc rgb "#1f77b4" title "incremental-async", \
     data using 1:7 with lines lw 2 lc rgb "#2ca02c" title "every-batch-async", \
     data using 1:3 with lines lw 2 dt 2 lc rgb "#000000" title "limit"
