"""The study of "Demystifying Mergeability" (arXiv 2601.22285) on models made here: which pairs merge, and what tells.

    mergekern study out
    mergekern study out-text --architecture text
    mergekern study out-quick --quick

fine-tunes an encoder on 20 tasks, computes the 28 metrics of their 190 pairs, merges every pair by every method,
measures each merge on the held-out data of both tasks, validates what predicts that, and says what was found beside
what the paper says. Nothing is downloaded. Stopped at any moment and started again, it continues, and ends with the
same files:

    zoo/                models, their samples and heads (see mergekern.study.zoos)
    statistics/         what the metrics are computed from
    metrics.parquet     28 metrics of every pair, also for every tensor alone
    alone.csv           accuracy of each model on its own task
    scores.csv          method, model_a, model_b, accuracy (mean of both tasks), normalized_accuracy (mean of the ratios
                        to the single models)
    probes/             merge probes by each method (see mergekern.merge_probes), on samples that give no scores
    analysis/           validation, variance components, ablation, coefficients and fingerprints of the methods
    predictors/         a fitted predictor of each method's scores
    timings.csv         what, method, count, seconds: what metrics, probes and measured merges cost on this machine
    budget.csv          method, predictor, merges: r, rmse and regret of predicting all other pairs from so many merges,
                        with alone.csv as what is known before the first
    comparison.csv      method, predictor, seconds, and r with partners known and with both models unseen
    comparison.svg      the means over the methods
    findings.md         what was found, beside what the paper says, and the comparison
    report.html         pairs, metrics, scores and predictions as one page for a browser
    study.json          the options of the run

Seconds are never the same twice: the first ones that were measured are kept, and nothing but timings.csv, the two
comparisons and findings.md depends on them. `--quick` has 10 tasks (45 pairs) in place of 20 (190), and leaves out
nothing else.
"""
