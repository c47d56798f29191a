# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
# The durations of steps in the two prefill runs of bench/results/h200_engine.md, from what --json wrote.
# gnuplot bench/engine.gnuplot
set terminal svg size 900,480 font "sans-serif,13" background "white"
set output "bench/results/engine.svg"
set title "8 ranks on one H200, prefill of 4096 tokens a rank, other traffic from pass 16 on"
set xlabel "pass"
set ylabel "milliseconds of a step"
set xrange [0:37]
set yrange [100:200]
set grid ytics
set key top center horizontal
data = "bench/results/engine.dat"
plot data using 1:2 with lines lw 2 lc rgb "#7f7f7f" title "none", \
     data using 1:3 with lines lw 2 dt 2 lc rgb "#000000" title "limit", \
     data using 1:4 with linespoints lw 1.5 pt 7 ps 0.4 lc rgb "#d62728" title "seed", \
     data using 1:5 with lines lw 2 lc rgb "#1f77b4" title "incremental-async", \
     data using 1:6 with lines lw 2 lc rgb "#2ca02c" title "every-batch-async"
