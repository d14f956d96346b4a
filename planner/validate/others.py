"""What other tools say of the same published runs: the section of docs/accuracy.md that ours are read against.

Every figure but those marked as stated by their authors comes from running the tool on those rows with its own
defaults. A tool ran what it can express, so its rows differ somewhat from ours.
"""

OTHERS = """## Others on the same runs

Mean error of the step time in per cent. *Constant roofline* is half of the peak on the arithmetic of the plan,
recomputation included, and the bubble of its pipeline. Tools were run with their defaults on the rows that they can
express; none was fitted to these, save Calculon, whose efficiencies come from the Korthikanti table. vTrain measures
every kernel on a GPU first. Ours on these sources stand in the table above.

| source | rows | constant roofline | best other tool | others |
|---|---|---|---|---|
| Megatron-LM SC21 Table 1 | 10 | 9.0 | 7.9 llm-analysis, FLOPs alone | 10.3 Calculon, 14.3 SimuMax |
| SC21 Table 2, ZeRO-3 | 6 | 40.2 | 23.3 SimuMax, as ZeRO-1 | 40.1 llm-analysis, 55.7 llm-cluster-simulator |
| Korthikanti et al. 2022 | 8 | 17.0 | 3.7 Calculon, calibrated on them | 5.0 SimuMax, 11.3 llm-cluster-simulator |
| MT-NLG 530B | 3 | 9.6 | 6.4 SimuMax | 29.7 Calculon, 30.3 llm-cluster-simulator |
| mosaicml/llm-foundry, twenty of its rows | 20 | 20.8 | 12.5 llm-cluster-simulator | 14.6 SimuMax, 23.8 llm-analysis |
| mosaicml/llm-foundry, others of 1B and more | 77 | 22.6 | 20.2 SimuMax | 20.2 llm-analysis, 85.4 Calculon |
| vTrain, several nodes | 109 | 17.6 | 14.73 vTrain, as its authors state | 17.7 llm-analysis, 19.6 Calculon |
| vTrain, one node | 1440 | 53.2 | 8.37 vTrain, as its authors state | 26.2 SimuMax, 38.9 Calculon |
| HF nanotron sweep, undisturbed runs | 1271 | 67.8 | 34.8 SimuMax | 50.9 Calculon, 60 llm-analysis |

Peak memory on the nanotron sweep: 32 to 41 % off, 30 to 35 % too low for most (SimuMax, llm-analysis, Calculon,
llm-cluster-simulator). Runs that died of memory, foreseen: 64 to 84 % of 1,908, without false alarms; Calculon as it
comes foresees all and condemns 35 % of those that ran. The plan they would pick, in 27 groups of that sweep: 1 to 11
run out of memory, 7 to 11 lie within 5 % of the best. A constant roofline says nothing of memory.
"""
