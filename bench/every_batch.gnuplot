# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
# zcat {intent,law,summary,translation}_tokens.csv.gz | ballast-replay --every-batch --tokens - --ranks 16 \
#   --slots-per-rank 6 --policy incremental --plan-on 4 --interval 2 --plot bench/results/every_batch.dat
# gnuplot bench/every_batch.gnuplot
set terminal svg size 900,520 font "sans-serif,13" background "white"
set output "bench/results/every_batch.svg"
set title "DeepSeek-V2-Lite, four kinds of text in turn: batches of 512 tokens, 16 ranks of 4 + 2 slots"
set xlabel "batch"
set ylabel "busiest rank / average rank, realised"
set y2label "experts moved, a layer"
set xrange [4:65]
set yrange [0.9:2.9]
set y2range [0:40]
set ytics nomirror
set y2tics 0, 2, 8
set xtics 0, 8
set grid ytics
set key top center horizontal
set arrow from 16.5, graph 0 to 16.5, graph 0.86 nohead dt 2 lc rgb "#7f7f7f"
set arrow from 32.5, graph 0 to 32.5, graph 0.86 nohead dt 2 lc rgb "#7f7f7f"
set arrow from 48.5, graph 0 to 48.5, graph 0.86 nohead dt 2 lc rgb "#7f7f7f"
data = "bench/results/every_batch.dat"
plot data using 1:($2/26.0) axes x1y2 with impulses lw 4 lc rgb "#c7c7c7" title "experts moved", \
     data using 1:3 with lines lw 1.5 lc rgb "#7f7f7f" title "start layout", \
     data using 1:4 with lines lw 1.5 lc rgb "#d62728" title "even shares", \
     data using 1:6 with lines lw 1.5 lc rgb "#1f77b4" title "shares of the batch before", \
     data using 1:7 with linespoints lw 2 pt 7 ps 0.4 lc rgb "#2ca02c" title "quotas of the batch"
