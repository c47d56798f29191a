# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
# ballast-quality --curve > bench/results/moves.dat && gnuplot bench/moves.gnuplot
set terminal svg size 800,480 font "sans-serif,13" background "white"
set output "bench/results/moves.svg"
set title "DeepSeek-R1, from one recording to the next: 58 layers, 256 experts, 32 ranks of 9 slots"
set xlabel "moves a layer"
set ylabel "balancedness"
set xrange [0.8:330]
set yrange [0.82:1.005]
set logscale x
set xtics (1, 2, 4, 8, 16, 32, 64, 128, 256)
set grid
set key bottom right
data = "bench/results/moves.dat"
# What moves nothing is drawn at the left edge.
x(moves) = moves < 1 ? 0.85 : moves
plot data index 1 using (x($1)):2 with linespoints lw 2 pt 7 lc rgb "#1f77b4" title "incremental, by budget", \
     data index 2 using (x($1)):2 with linespoints lw 2 pt 7 lc rgb "#2ca02c" title "incremental, by budget, with shares", \
     data index 3 using 1:2 with points pt 3 ps 1.5 lw 2 lc rgb "#000000" title "incremental, its own stop rule", \
     data index 0 every ::0::0 using (x($1)):2 with points pt 5 lc rgb "#7f7f7f" title "as it was", \
     data index 0 every ::1::1 using 1:2 with points pt 4 ps 1.3 lw 2 lc rgb "#d62728" title "deepseek", \
     data index 0 every ::2::2 using 1:2 with points pt 6 ps 1.3 lw 2 lc rgb "#d62728" title "deepseek, relabelled", \
     data index 0 every ::3::3 using 1:2 with points pt 8 ps 1.3 lw 2 lc rgb "#9467bd" title "balanced", \
     data index 0 every ::4::4 using 1:2 with points pt 10 ps 1.3 lw 2 lc rgb "#9467bd" title "balanced, relabelled"
