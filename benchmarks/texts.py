"""Every sentence a person reads in a verdict or a report, in English and Chinese."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

Language = Literal["en", "zh"]

TEXTS: dict[str, dict[Language, str]] = {
    # verdicts
    "PASS": {"en": "PASS", "zh": "通过"},
    "FAIL": {"en": "FAIL", "zh": "不通过"},
    "NO VERDICT": {"en": "NO VERDICT", "zh": "无法判定"},
    "INVALID": {"en": "INVALID", "zh": "无效"},
    "meaning_PASS": {
        "en": "The candidate may replace what runs.",
        "zh": "候选版本可以替换当前版本。",
    },
    "meaning_FAIL": {"en": "The candidate must not replace what runs.", "zh": "候选版本不应替换当前版本。"},
    "meaning_NO VERDICT": {
        "en": "The evidence does not decide: run more pairs, or send more labelled calls.",
        "zh": "证据不足以判定：请增加对照轮次，或发送更多带标签的通话。",
    },
    "meaning_INVALID": {
        "en": "These figures say nothing about the servers.",
        "zh": "这些数字不能说明服务器的情况。",
    },
    "meaning_run_PASS": {"en": "The objective was met.", "zh": "达到目标。"},
    "meaning_run_valid": {"en": "The run is valid; no objective was set.", "zh": "测试有效；未设目标。"},
    "meaning_run_FAIL": {"en": "The objective was missed.", "zh": "未达到目标。"},
    "meaning_run_NO VERDICT": {"en": "The run was not finished.", "zh": "测试未完成。"},
    # stress and capacity
    "meaning_stress_PASS": {"en": "The limit of the server is known.", "zh": "已找到服务器的极限。"},
    "meaning_stress_FAIL": {"en": "It broke below what it must hold.", "zh": "在要求的负载之下就已失守。"},
    "meaning_stress_NO VERDICT": {"en": "The test was not finished.", "zh": "测试未完成。"},
    "stress_broke": {
        "en": "At {load} it broke: {what}.",
        "zh": "在 {load} 时失守：{what}。",
    },
    "stress_held": {
        "en": "The objective was kept up to {load}, the most that was tried.",
        "zh": "直到尝试过的最大负载 {load}，目标都得到满足。",
    },
    "stress_held_before": {"en": "It was kept at {load}.", "zh": "在 {load} 时仍满足目标。"},
    "stress_knee_users": {
        "en": "Knee: {users:.1f} users. With fewer it has room, with more they queue: {qps:.1f} requests per second "
        "is the most it did, and a request alone takes {latency_ms:.0f} ms.",
        "zh": "拐点：{users:.1f} 个用户。少于此数仍有余量，多于此数开始排队：最多每秒 {qps:.1f} 个请求，"
        "单个请求需 {latency_ms:.0f} 毫秒。",
    },
    "stress_knee_rate_per_s": {
        "en": "Knee: {rate_per_s:.1f} requests per second, the most it did; then {users:.1f} are in work at once.",
        "zh": "拐点：每秒 {rate_per_s:.1f} 个请求，为其最大处理量；此时同时处理 {users:.1f} 个。",
    },
    "stress_knee_beyond": {
        "en": "No knee: throughput still grew with the load. Raise maximum.",
        "zh": "未见拐点：吞吐量仍随负载增长。请提高 maximum。",
    },
    "stress_knee_before": {
        "en": "No knee: the first step was at the limit already. Begin lower.",
        "zh": "未见拐点：第一步就已达到极限。请从更低的负载开始。",
    },
    "stress_client": {
        "en": "At {load} the load generator was the limit, not the server: {reason}.",
        "zh": "在 {load} 时，极限是负载生成器而不是服务器：{reason}。",
    },
    "load_users": {"en": "{value:g} users", "zh": "{value:g} 个用户"},
    "load_rate_per_s": {"en": "{value:.4g} requests per second", "zh": "每秒 {value:.4g} 个请求"},
    "broke_errors": {
        "en": "{failed} of {total} requests failed, at most {limit:.1%} may ({errors})",
        "zh": "{total} 个请求中 {failed} 个失败，最多允许 {limit:.1%}（{errors}）",
    },
    "broke_latency": {
        "en": "{share:.0%} of the answers took longer than {limit:g} ms, at most 5 % may",
        "zh": "{share:.0%} 的回答超过 {limit:g} 毫秒，最多允许 5 %",
    },
    "broke_ttft": {
        "en": "{share:.0%} of the first tokens took longer than {limit:g} ms, at most 5 % may",
        "zh": "{share:.0%} 的首 token 超过 {limit:g} 毫秒，最多允许 5 %",
    },
    "broke_avg": {
        "en": "the average latency was {value:.0f} ms, at most {limit:g} is allowed",
        "zh": "平均延迟 {value:.0f} 毫秒，上限 {limit:g}",
    },
    "broke_queue": {
        "en": "{limit} requests waited for an answer (max_in_flight)",
        "zh": "有 {limit} 个请求在等待回答（max_in_flight）",
    },
    "meaning_capacity_PASS": {"en": "The capacity is known.", "zh": "已得出容量。"},
    "meaning_capacity_FAIL": {"en": "The server holds less than was asked.", "zh": "服务器的容量低于要求。"},
    "meaning_capacity_NO VERDICT": {
        "en": "The search was not finished: allow more max_probes.",
        "zh": "搜索未完成：请增大 max_probes。",
    },
    "capacity_between": {
        "en": "Capacity: {kept:.4g} requests per second were kept, {broken:.4g} were not "
        "({target:.0%} within {limits}; {probes} probes).",
        "zh": "容量：每秒 {kept:.4g} 个请求满足目标，{broken:.4g} 个不满足（{target:.0%} 在 {limits} 之内；"
        "{probes} 次探测）。",
    },
    "capacity_above": {
        "en": "Capacity: at least {kept:.4g} requests per second ({target:.0%} within {limits}; {probes} probes).",
        "zh": "容量：至少每秒 {kept:.4g} 个请求（{target:.0%} 在 {limits} 之内；{probes} 次探测）。",
    },
    "capacity_below": {
        "en": "Capacity: less than {broken:.4g} requests per second ({target:.0%} within {limits}; {probes} probes).",
        "zh": "容量：低于每秒 {broken:.4g} 个请求（{target:.0%} 在 {limits} 之内；{probes} 次探测）。",
    },
    "capacity_alone": {
        "en": "One user alone does not keep {limits}: {goodput:.0%} of its requests do, the median takes "
        "{latency_ms:.0f} ms.",
        "zh": "单个用户就不能满足 {limits}：只有 {goodput:.0%} 的请求满足，中位数为 {latency_ms:.0f} 毫秒。",
    },
    "capacity_client": {
        "en": "At {rate:.4g} requests per second the load generator was the limit, not the server: {reason}",
        "zh": "在每秒 {rate:.4g} 个请求时，极限是负载生成器而不是服务器：{reason}",
    },
    "title_stress": {"en": "Stress test", "zh": "压力测试"},
    "title_capacity": {"en": "How much can it take?", "zh": "它能承受多少？"},
    # tune and optimisations
    "meaning_tune_PASS": {"en": "The search was carried through.", "zh": "搜索已完成。"},
    "meaning_tune_NO VERDICT": {"en": "The search was not finished.", "zh": "搜索未完成。"},
    "meaning_tune_INVALID": {"en": "No candidate could be measured.", "zh": "没有一个候选设置能够测量。"},
    "meaning_optimisations_PASS": {"en": "Every optimisation was measured.", "zh": "所有优化均已测量。"},
    "meaning_optimisations_NO VERDICT": {"en": "Not every optimisation was measured.", "zh": "并非所有优化都已测量。"},
    "meaning_optimisations_INVALID": {"en": "Not every optimisation was measured.", "zh": "并非所有优化都已测量。"},
    "title_tune": {"en": "Which settings are best?", "zh": "哪些设置最好？"},
    "title_optimisations": {"en": "What does each optimisation bring?", "zh": "每项优化带来什么？"},
    "tune_won": {
        "en": "Use {name}: {gain:.2f} times the reference by {metric} (interval {low:.2f} to {high:.2f}, {pairs} fresh "
        "pairs); {tried} candidates were measured, {refused} refused.",
        "zh": "采用 {name}：按{metric}为参照的 {gain:.2f} 倍（区间 {low:.2f} 至 {high:.2f}，{pairs} 对全新对照）；"
        "测量了 {tried} 个候选设置，拒绝了 {refused} 个。",
    },
    "tune_kept": {
        "en": "Keep the reference: of {tried} measured candidates ({refused} more were refused) none was better beyond "
        "doubt and as good.",
        "zh": "保留参照：在测量的 {tried} 个候选设置中（另有 {refused} 个被拒绝），没有一个确定更快且同样好。",
    },
    "tune_nothing": {
        "en": "Keep the reference: no candidate could be measured, {refused} were refused.",
        "zh": "保留参照：没有候选设置能够测量，{refused} 个被拒绝。",
    },
    "candidate_faster": {
        "en": "{name}: {gain:.3f} times the reference by {metric} (interval {low:.3f} to {high:.3f}, {pairs} pairs).",
        "zh": "{name}：按{metric}为参照的 {gain:.3f} 倍（区间 {low:.3f} 至 {high:.3f}，{pairs} 对）。",
    },
    "candidate_slower": {
        "en": "{name}: slower, {gain:.3f} times the reference by {metric} (interval {low:.3f} to {high:.3f}, {pairs} "
        "pairs).",
        "zh": "{name}：更慢，按{metric}为参照的 {gain:.3f} 倍（区间 {low:.3f} 至 {high:.3f}，{pairs} 对）。",
    },
    "candidate_same": {
        "en": "{name}: no gain was shown, {gain:.3f} times the reference by {metric} "
        "(interval {low:.3f} to {high:.3f}, {pairs} pairs).",
        "zh": "{name}：未显示收益，按{metric}为参照的 {gain:.3f} 倍（区间 {low:.3f} 至 {high:.3f}，{pairs} 对）。",
    },
    "candidate_unsure": {
        "en": "{name}: {gain:.3f} times the reference by {metric}, but whether it is as good is open: {reason}.",
        "zh": "{name}：按{metric}为参照的 {gain:.3f} 倍，但是否同样好尚不能定：{reason}。",
    },
    "candidate_worse": {
        "en": "{name}: {gain:.3f} times the reference by {metric}, but worse: {reason}.",
        "zh": "{name}：按{metric}为参照的 {gain:.3f} 倍，但更差：{reason}。",
    },
    "candidate_invalid": {
        "en": "{name}: could not be measured: {reason}.",
        "zh": "{name}：无法测量：{reason}。",
    },
    "candidate_refused": {"en": "{name}: refused: {reason}", "zh": "{name}：被拒绝：{reason}"},
    "candidate_not_prepared": {
        "en": "no weights of {bits} bits are named: prepare them with python -m model_server.optimize, then "
        "prepared.{bits}=DIRECTORY",
        "zh": "未指明 {bits} 位的权重：先用 python -m model_server.optimize 准备，再设 prepared.{bits}=目录",
    },
    "candidate_name": {"en": "settings", "zh": "设置"},
    "candidate_gain": {"en": "times the reference", "zh": "为参照的倍数"},
    "candidate_interval": {"en": "interval", "zh": "区间"},
    "metric": {"en": "metric", "zh": "指标"},
    "pairs": {"en": "pairs", "zh": "对数"},
    "verdict": {"en": "verdict", "zh": "结论"},
    "tune_forest": {"en": "Candidates against the reference", "zh": "候选设置与参照的比较"},
    "tune_forest_note": {
        "en": "Each bar is the interval of how many times as good a candidate is, over pairs of runs in turns with the "
        "reference. Green: better, and answers as good. Red: slower or worse. Amber: open. Grey: gains too small for a "
        "change. The best of several looks better than it is, so fresh pairs (decision) have the last word.",
        "zh": "每条横线为候选设置相对参照的倍数区间，由与参照交替进行的成对运行得出。绿色：更快且回答同样好；红色："
        "更慢或更差；橙色：未定。灰色：收益太小，不值得更改。多个候选中的最佳者看起来会偏好，因此由全新的对照（decision）最后决定。",
    },
    "optimisations_forest": {"en": "Each optimisation against the reference", "zh": "每项优化与参照的比较"},
    "optimisations_forest_note": {
        "en": "Each bar is the interval of how many times as good the environment is with this optimisation, over "
        "pairs of runs in turns with the reference, which has none. Green: better, and answers as good. Red: slower or "
        "worse. Amber: open.",
        "zh": "每条横线为启用该项优化后相对参照（不启用任何优化）的倍数区间，由与参照交替进行的成对运行得出。绿色："
        "更快且回答同样好；红色：更慢或更差；橙色：未定。",
    },
    "candidates": {"en": "Every comparison", "zh": "各次比较"},
    "candidates_note": {
        "en": "A name leads to the comparison's own report. Where there are two figures, the first is the reference's.",
        "zh": "点击名称可查看该次比较的报告。两个数字中前者为参照。",
    },
    "candidates_refused": {"en": "Refused, worse or open, and why", "zh": "被拒绝、更差或未定的原因"},
    "refused": {"en": "refused", "zh": "被拒绝"},
    "settings_tried": {"en": "Settings", "zh": "设置一览"},
    "reference": {"en": "reference", "zh": "参照"},
    "environment_to_use": {"en": "The environment to use:", "zh": "建议采用的环境："},
    # findings
    "speed_faster": {
        "en": "Speed: B is faster, {gain:.3f} times A by {metric} "
        "({confidence:.0%} interval {low:.3f} to {high:.3f}, "
        "{pairs} pairs).",
        "zh": "速度：B 更快，按{metric}为 A 的 {gain:.3f} 倍（{confidence:.0%} 区间 {low:.3f} 至 {high:.3f}，"
        "{pairs} 对）。",
    },
    "speed_slower": {
        "en": "Speed: B is slower, {gain:.3f} times A by {metric} "
        "({confidence:.0%} interval {low:.3f} to {high:.3f}, "
        "{pairs} pairs); up to {margin:.0%} worse is allowed.",
        "zh": "速度：B 更慢，按{metric}为 A 的 {gain:.3f} 倍（{confidence:.0%} "
        "区间 {low:.3f} 至 {high:.3f}，{pairs} 对）；"
        "允许最多差 {margin:.0%}。",
    },
    "speed_same": {
        "en": "Speed: no difference was shown by {metric}: {gain:.3f} "
        "times A ({confidence:.0%} interval {low:.3f} to "
        "{high:.3f}, {pairs} pairs); up to {margin:.0%} worse is allowed.",
        "zh": "速度：按{metric}未显示出差异：为 A 的 {gain:.3f} 倍（{confidence:.0%} 区间 {low:.3f} 至 {high:.3f}，"
        "{pairs} 对）；允许最多差 {margin:.0%}。",
    },
    "speed_missing": {
        "en": "Speed: {metric} could not be stated for every run: that needs {needed} successful requests in each, "
        "and one had {fewest}. Make the runs longer.",
        "zh": "速度：并非每次运行都能得出{metric}：每次至少需要 {needed} 个成功请求，最少的一次只有 {fewest} 个。请"
        "延长每次运行。",
    },
    "speed_unknown": {
        "en": "Speed: {metric} is not known for every run of at least two pairs.",
        "zh": "速度：至少需要两对，且每次运行都能得出{metric}。",
    },
    "guard_unknown": {
        "en": "Guarded: {metric} is not known for every run of at least two pairs.",
        "zh": "附加指标：至少需要两对，且每次运行都能得出{metric}。",
    },
    "guard_kept": {
        "en": "Guarded: {metric} is not more than {margin:.0%} worse: {gain:.3f} times as good as A ("
        "{confidence:.0%} interval {low:.3f} to {high:.3f}).",
        "zh": "附加指标：{metric}变差不超过 {margin:.0%}：为 A 的 {gain:.3f} 倍（{confidence:.0%} 区间 {low:.3f} 至"
        " {high:.3f}）。",
    },
    "guard_broken": {
        "en": "Guarded: {metric} is more than {margin:.0%} worse: {gain:.3f} times as good as A ({confidence:.0%} "
        "interval {low:.3f} to {high:.3f}; p {p_worse:.2g} among all guarded metrics).",
        "zh": "附加指标：{metric}变差超过 {margin:.0%}：为 A 的 {gain:.3f} 倍（{confidence:.0%} 区间 {low:.3f} 至 "
        "{high:.3f}；计入全部附加指标后 p 为 {p_worse:.2g}）。",
    },
    "guard_unsure": {
        "en": "Guarded: whether {metric} is more than {margin:.0%} worse is open: {gain:.3f} times as good as A ("
        "{confidence:.0%} interval {low:.3f} to {high:.3f}, {pairs} pairs).",
        "zh": "附加指标：{metric}是否变差超过 {margin:.0%} 尚不能定：为 A 的 {gain:.3f} 倍（{confidence:.0%} 区间 "
        "{low:.3f} 至 {high:.3f}，{pairs} 对）。",
    },
    "guard_missing": {
        "en": "Guarded: {metric} could not be stated for every run: that needs {needed} successful requests in "
        "each, and one had {fewest}. Make the runs longer.",
        "zh": "附加指标：并非每次运行都能得出{metric}：每次至少需要 {needed} 个成功请求，最少的一次只有 {fewest} 个"
        "。请延长每次运行。",
    },
    "guard_none_sent": {
        "en": "Guarded: {metric} could not be stated: no request was sent.",
        "zh": "附加指标：没有发送请求，无法得出{metric}。",
    },
    "share_kept": {
        "en": "Guarded: {metric} is {share_a:.1%} (A) and {share_b:.1%} (B) of the requests; that it got worse by "
        "more than {margin:.1%} of them is ruled out (interval {low:+.1%} to {high:+.1%}).",
        "zh": "附加指标：{metric}占请求的 {share_a:.1%}（A）和 {share_b:.1%}（B）；可排除变差超过请求总数的 "
        "{margin:.1%}（区间 {low:+.1%} 至 {high:+.1%}）。",
    },
    "share_broken": {
        "en": "Guarded: {metric} is {share_a:.1%} (A) and {share_b:.1%} (B) of the requests; it got worse by more "
        "than {margin:.1%} of them (interval {low:+.1%} to {high:+.1%}).",
        "zh": "附加指标：{metric}占请求的 {share_a:.1%}（A）和 {share_b:.1%}（B）；变差超过请求总数的 {margin:.1%}"
        "（区间 {low:+.1%} 至 {high:+.1%}）。",
    },
    "share_unsure": {
        "en": "Guarded: {metric} is {share_a:.1%} (A) and {share_b:.1%} (B) of the requests; that it got worse by "
        "more than {margin:.1%} of them is not ruled out (interval {low:+.1%} to {high:+.1%}).",
        "zh": "附加指标：{metric}占请求的 {share_a:.1%}（A）和 {share_b:.1%}（B）；不能排除变差超过请求总数的 "
        "{margin:.1%}（区间 {low:+.1%} 至 {high:+.1%}）。",
    },
    "lengths_differ": {
        "en": "Speed is not judged: B's answers are {length_ratio:.2f} times as long as A's ({mean_length_b:.1f} "
        "and {mean_length_a:.1f} {length_unit} on average; at most {limit:.0%} may differ). Who writes less is "
        "faster; make both answer alike, or fix the length with max_tokens.",
        "zh": "不判断速度：B 的回答长度为 A 的 {length_ratio:.2f} 倍（平均 {mean_length_b:.1f} 与 "
        "{mean_length_a:.1f} {length_unit}；最多可差 {limit:.0%}）。写得少自然更快；请使双方回答相当，或用 "
        "max_tokens 固定长度。",
    },
    "errors_few": {
        "en": "Errors of {side}: {failed} of {total} requests (at most {limit:.1%}).",
        "zh": "{side} 的错误：{total} 个请求中 {failed} 个（上限 {limit:.1%}）。",
    },
    "errors_unsure": {
        "en": "Errors of {side}: {failed} of {total} requests, above {limit:.1%}, but too few requests to be certain.",
        "zh": "{side} 的错误：{total} 个请求中 {failed} 个，高于 {limit:.1%}，但请求太少，不能确定。",
    },
    "errors_many": {
        "en": "Errors of {side}: {failed} of {total} requests; at most {limit:.1%} are allowed.",
        "zh": "{side} 的错误：{total} 个请求中 {failed} 个；上限为 {limit:.1%}。",
    },
    "errors_none_sent": {
        "en": "Errors of {side}: no request was sent.",
        "zh": "{side} 的错误：没有发送请求。",
    },
    "errors_all": {
        "en": "Errors of {side}: none of {total} requests succeeded.",
        "zh": "{side} 的错误：{total} 个请求无一成功。",
    },
    "accuracy_kept": {
        "en": "Quality: accuracy {accuracy_a:.1%} (A) and {accuracy_b:.1%} "
        "(B) on {labelled_calls} labelled calls; a loss "
        "of more than {limit:.1%} is ruled out (interval {low:+.1%} to {high:+.1%}).",
        "zh": "质量：{labelled_calls} 通带标签通话的准确率 {accuracy_a:.1%}（A）和 {accuracy_b:.1%}（B）；"
        "可排除超过 {limit:.1%} 的损失（区间 {low:+.1%} 至 {high:+.1%}）。",
    },
    "accuracy_broken": {
        "en": "Quality: B is worse: accuracy {accuracy_a:.1%} (A) and "
        "{accuracy_b:.1%} (B) on {labelled_calls} labelled "
        "calls; the loss is more than {limit:.1%} (interval {low:+.1%} to {high:+.1%}).",
        "zh": "质量：B 更差：{labelled_calls} 通带标签通话的准确率 {accuracy_a:.1%}（A）和 {accuracy_b:.1%}（B）；"
        "损失超过 {limit:.1%}（区间 {low:+.1%} 至 {high:+.1%}）。",
    },
    "accuracy_unsure": {
        "en": "Quality: accuracy {accuracy_a:.1%} (A) and {accuracy_b:.1%} "
        "(B) on {labelled_calls} labelled calls; a loss "
        "of more than {limit:.1%} is not ruled out (interval {low:+.1%} to {high:+.1%}).",
        "zh": "质量：{labelled_calls} 通带标签通话的准确率 {accuracy_a:.1%}（A）和 {accuracy_b:.1%}（B）；"
        "不能排除超过 {limit:.1%} 的损失（区间 {low:+.1%} 至 {high:+.1%}）。",
    },
    "macro_f1_kept": {
        "en": "Quality: macro-F1 {macro_f1_a:.3f} (A) and {macro_f1_b:.3f} (B) on {labelled_calls} labelled calls; "
        "a loss of more than {limit:.3f} is ruled out (interval {low:+.3f} to {high:+.3f}).",
        "zh": "质量：{labelled_calls} 通带标签通话的宏平均 F1 为 {macro_f1_a:.3f}（A）和 {macro_f1_b:.3f}（B）；可"
        "排除超过 {limit:.3f} 的损失（区间 {low:+.3f} 至 {high:+.3f}）。",
    },
    "macro_f1_broken": {
        "en": "Quality: macro-F1 {macro_f1_a:.3f} (A) and {macro_f1_b:.3f} (B) on {labelled_calls} labelled calls; "
        "the loss is more than {limit:.3f} (interval {low:+.3f} to {high:+.3f}).",
        "zh": "质量：{labelled_calls} 通带标签通话的宏平均 F1 为 {macro_f1_a:.3f}（A）和 {macro_f1_b:.3f}（B）；损"
        "失超过 {limit:.3f}（区间 {low:+.3f} 至 {high:+.3f}）。",
    },
    "macro_f1_unsure": {
        "en": "Quality: macro-F1 {macro_f1_a:.3f} (A) and {macro_f1_b:.3f} (B) on {labelled_calls} labelled calls; "
        "a loss of more than {limit:.3f} is not ruled out (interval {low:+.3f} to {high:+.3f}).",
        "zh": "质量：{labelled_calls} 通带标签通话的宏平均 F1 为 {macro_f1_a:.3f}（A）和 {macro_f1_b:.3f}（B）；不"
        "能排除超过 {limit:.3f} 的损失（区间 {low:+.3f} 至 {high:+.3f}）。",
    },
    "texts_kept": {
        "en": "Quality: B's texts are {edit_similarity:.1%} like A's ({exact_match:.1%} of {calls} are equal); "
        "they are certainly not more than {limit:.1%} less like A's than A's own are when asked again (loss "
        "{similarity_drop:+.1%}, interval {low:+.1%} to {high:+.1%}, {repeated_calls} calls asked again).",
        "zh": "质量：B 的文本与 A 的相似度为 {edit_similarity:.1%}（{calls} 条中 {exact_match:.1%} 完全相同）；与 "
        "A 自己再次回答相比，相似度的损失可排除超过 {limit:.1%}（损失 {similarity_drop:+.1%}，区间 {low:+.1%} 至 "
        "{high:+.1%}，重复提问 {repeated_calls} 条）。",
    },
    "texts_broken": {
        "en": "Quality: B's texts are {edit_similarity:.1%} like A's ({exact_match:.1%} of {calls} are equal); "
        "they are more than {limit:.1%} less like A's than A's own are when asked again (loss {similarity_drop:+.1%}"
        ", interval {low:+.1%} to {high:+.1%}, {repeated_calls} calls asked again).",
        "zh": "质量：B 的文本与 A 的相似度为 {edit_similarity:.1%}（{calls} 条中 {exact_match:.1%} 完全相同）；与 "
        "A 自己再次回答相比，相似度的损失超过 {limit:.1%}（损失 {similarity_drop:+.1%}，区间 {low:+.1%} 至 "
        "{high:+.1%}，重复提问 {repeated_calls} 条）。",
    },
    "texts_unsure": {
        "en": "Quality: B's texts are {edit_similarity:.1%} like A's ({exact_match:.1%} of {calls} are equal); it "
        "is open whether they are more than {limit:.1%} less like A's than A's own are when asked again (loss "
        "{similarity_drop:+.1%}, interval {low:+.1%} to {high:+.1%}, {repeated_calls} calls asked again).",
        "zh": "质量：B 的文本与 A 的相似度为 {edit_similarity:.1%}（{calls} 条中 {exact_match:.1%} 完全相同）；与 "
        "A 自己再次回答相比，不能排除相似度的损失超过 {limit:.1%}（损失 {similarity_drop:+.1%}，区间 {low:+.1%} 至 "
        "{high:+.1%}，重复提问 {repeated_calls} 条）。",
    },
    "agreement_kept": {
        "en": "Quality: both answer alike on {agreement:.1%} of {calls} calls (at least {limit:.0%}).",
        "zh": "质量：{calls} 通通话中 {agreement:.1%} 回答一致（至少 {limit:.0%}）。",
    },
    "agreement_broken": {
        "en": "Quality: both answer alike on only {agreement:.1%} of {calls} calls; at least {limit:.0%} are asked.",
        "zh": "质量：{calls} 通通话中只有 {agreement:.1%} 回答一致；要求至少 {limit:.0%}。",
    },
    "agreement_unsure": {
        "en": "Quality: both answer alike on {agreement:.1%} of {calls} "
        "calls (interval {low:.1%} to {high:.1%}); whether "
        "{limit:.0%} are reached is open.",
        "zh": "质量：{calls} 通通话中 {agreement:.1%} 回答一致（区间 {low:.1%} "
        "至 {high:.1%}）；是否达到 {limit:.0%} 尚不能定。",
    },
    "agreement_missing": {
        "en": "Quality: no call was answered by both sides.",
        "zh": "质量：没有一通通话得到双方的回答。",
    },
    "incomplete": {
        "en": "Interrupted after {pairs} pairs.",
        "zh": "在 {pairs} 对之后中断。",
    },
    "budget_spent": {
        "en": "The budget of {budget_s:.0f} s was spent after {pairs} pairs; at least {needed} are needed for a "
        "verdict.",
        "zh": "{budget_s:.0f} 秒的预算在 {pairs} 对之后用完；至少需要 {needed} 对才能判定。",
    },
    "set_aside": {
        "en": "{pairs} pairs were set aside and repeated, because the load generator got too little CPU in them.",
        "zh": "{pairs} 对因负载生成器得不到足够的 CPU 而搁置并重做。",
    },
    "ill_health": {"en": "Run {run}: {reason}.", "zh": "第 {run} 次运行：{reason}。"},
    # metrics
    "qps": {"en": "requests per second", "zh": "每秒请求数"},
    "tokens_per_s": {"en": "tokens per second", "zh": "每秒 token 数"},
    "latency_avg": {"en": "average latency", "zh": "平均延迟"},
    "latency_p50": {"en": "median latency", "zh": "延迟中位数"},
    "latency_p95": {"en": "95th percentile of latency", "zh": "延迟第 95 百分位"},
    "latency_p99": {"en": "99th percentile of latency", "zh": "延迟第 99 百分位"},
    "ttft_p50": {"en": "median time to first token", "zh": "首 token 时间中位数"},
    "ttft_p95": {"en": "95th percentile of time to first token", "zh": "首 token 时间第 95 百分位"},
    "tpot_p50": {"en": "median time per output token", "zh": "每 token 时间中位数"},
    # report
    "title_compare": {"en": "Is the candidate as good, and faster?", "zh": "候选版本是否同样好、而且更快？"},
    "title_run": {"en": "Load test", "zh": "负载测试"},
    "title_soak": {"en": "Does it stay as it was?", "zh": "长时间运行是否保持稳定？"},
    "title_smoke": {"en": "Quick test", "zh": "快速测试"},
    "meaning_soak_PASS": {
        "en": "Nothing grew: more than the limits is ruled out.",
        "zh": "没有增长：可排除超过限值的增长。",
    },
    "meaning_soak_FAIL": {
        "en": "It did not stay as it was, or missed the objective.",
        "zh": "未能保持稳定，或未达到目标。",
    },
    "meaning_soak_NO VERDICT": {
        "en": "Too short, or too noisy, to say: run longer.",
        "zh": "时间太短或波动太大，尚不能定：请延长运行。",
    },
    "meaning_smoke_PASS": {"en": "It answers.", "zh": "能够应答。"},
    "meaning_smoke_FAIL": {"en": "Requests failed, or the objective was missed.", "zh": "有请求失败，或未达到目标。"},
    "meaning_smoke_NO VERDICT": {"en": "The test was not finished.", "zh": "测试未完成。"},
    # soak
    "soak_cell": {"en": "cell {cell} of {cells}", "zh": "第 {cell} / {cells} 段"},
    "soak_cell_ill": {"en": "Cell {cell}: {reason}", "zh": "第 {cell} 段：{reason}"},
    "none_succeeded": {"en": "None of {total} requests succeeded.", "zh": "{total} 个请求无一成功。"},
    "soak_gone": {
        "en": "The server stopped answering: every request of cell {cell} failed.",
        "zh": "服务器不再应答：第 {cell} 段的请求全部失败。",
    },
    "soak_stopped": {"en": "Interrupted after {cells} cells.", "zh": "在 {cells} 段之后中断。"},
    "soak_ill": {
        "en": "Cells that say nothing about latency, because the load generator was not well in them: {cells}.",
        "zh": "因负载生成器状态不佳而不能说明延迟的段数：{cells}。",
    },
    "soak_neighbours": {
        "en": "Other processes of this machine used more and more CPU meanwhile: a latency that rises may be theirs.",
        "zh": "同时本机其他进程占用的 CPU 不断增加：延迟上升可能由它们造成。",
    },
    "soak_steady": {
        "en": "{what}: steady; growth of {limit} per hour is ruled out (at most {slope_high} per hour).",
        "zh": "{what}：稳定；可排除每小时 {limit} 的增长（至多每小时 {slope_high}）。",
    },
    "soak_grows": {
        "en": "{what}: grows by {slope_per_hour} per hour ({slope_low} to {slope_high}, p = {p:.1g}); the limit is "
        "{limit}.",
        "zh": "{what}：每小时增长 {slope_per_hour}（{slope_low} 至 {slope_high}，p = {p:.1g}）；限值为 {limit}。",
    },
    "soak_unsure": {
        "en": "{what}: {slope_per_hour} per hour ({slope_low} to {slope_high}); growth of {limit} is neither shown nor "
        "ruled out.",
        "zh": "{what}：每小时 {slope_per_hour}（{slope_low} 至 {slope_high}）；每小时 {limit} 的增长既未证实也未排除。",
    },
    "soak_short": {
        "en": "{what}: {known} cells have a value, {needed} are needed.",
        "zh": "{what}：只有 {known} 段有数值，至少需要 {needed} 段。",
    },
    # smoke
    "smoke_latency": {"en": "{requests} requests, one after the other", "zh": "依次发送 {requests} 个请求"},
    "smoke_qps": {"en": "{users} users at once", "zh": "{users} 个用户同时发送"},
    "smoke_failed": {
        "en": "{failed} of the {total} requests one after the other failed.",
        "zh": "依次发送的 {total} 个请求中有 {failed} 个失败。",
    },
    "soak_latency_p50": {"en": "Median latency", "zh": "延迟中位数"},
    "soak_latency_p95": {"en": "p95 latency", "zh": "p95 延迟"},
    "soak_ttft_p50": {"en": "Median time to first token", "zh": "首 token 时间中位数"},
    "soak_memory_used_mb": {"en": "Server memory", "zh": "服务器内存"},
    "soak_open_files": {"en": "Open files of the server", "zh": "服务器打开的文件数"},
    "soak_threads": {"en": "Threads of the server", "zh": "服务器线程数"},
    "unfinished": {
        "en": "This benchmark was interrupted; what was measured until then is shown.",
        "zh": "本次测试被中断，以下为中断之前的结果。",
    },
    "journal_broken": {
        "en": "The journal of requests was cut off or damaged: only what stands before the break is counted.",
        "zh": "请求日志被截断或损坏：只计入断点之前的内容。",
    },
    "tiles_note": {"en": "B, and its change against A", "zh": "B，以及相对 A 的变化"},
    "running_now": {"en": "A, runs now", "zh": "A，当前版本"},
    "candidate": {"en": "B, candidate", "zh": "B，候选版本"},
    "figures": {"en": "Figures", "zh": "数字"},
    "figure": {"en": "figure", "zh": "指标"},
    "requests": {"en": "requests", "zh": "请求数"},
    "successful": {"en": "successful", "zh": "成功"},
    "error_rate": {"en": "error rate", "zh": "错误率"},
    "rate": {"en": "requests per second", "zh": "每秒请求数"},
    "avg_latency": {"en": "average latency", "zh": "平均延迟"},
    "p50": {"en": "median latency", "zh": "延迟中位数"},
    "p95": {"en": "p95 latency", "zh": "p95 延迟"},
    "p99": {"en": "p99 latency", "zh": "p99 延迟"},
    "ttft": {"en": "median time to first token", "zh": "首 token 时间中位数"},
    "tpot": {"en": "median time per output token", "zh": "每 token 时间中位数"},
    "event_gap_p50": {"en": "median gap between events", "zh": "事件间隔中位数"},
    "event_gap_p99": {"en": "p99 gap between events", "zh": "p99 事件间隔"},
    "tokens_per_event": {"en": "tokens per event", "zh": "每个事件的 token 数"},
    "goodput": {"en": "goodput (within the limits)", "zh": "有效吞吐（在限值之内）"},
    "accuracy": {"en": "accuracy", "zh": "准确率"},
    "macro_f1": {"en": "macro-F1", "zh": "宏平均 F1"},
    "agreement": {"en": "answers alike", "zh": "回答一致"},
    "server_cpu": {"en": "server CPU per 1000 requests", "zh": "每千次请求的服务器 CPU 时间"},
    "server_memory": {"en": "server memory, peak", "zh": "服务器内存峰值"},
    "too_few": {"en": "too few requests", "zh": "请求太少"},
    "forest": {"en": "B against A, pair by pair", "zh": "逐对比较 B 与 A"},
    "forest_note": {
        "en": "Each pair is one run on A and one on B, right after each other. Right of the line: B is better. A "
        "thin bar is the noise within the two runs; where pairs differ by more, the machine changed between them. "
        "The thick bar is the {confidence:.0%} interval of the mean over pairs, which decides. Grey: how much worse "
        "B may be.",
        "zh": "每一对是紧接着的一次 A 和一次 B。线右侧表示 B 更好。细横条为两次运行内部的波动；各对之间差异更大时，"
        "是机器状态在变化。粗横条是各对均值的 {confidence:.0%} 区间，以它为准。灰色为允许 B 变差的范围。",
    },
    "forest_axis": {"en": "how many times as good as A", "zh": "为 A 的多少倍"},
    "metrics_forest": {"en": "B against A by every metric", "zh": "按各项指标比较 B 与 A"},
    "metrics_forest_note": {
        "en": "Right of the line: B is better. Filled: metrics that decide, green when B is certainly not worse than "
        "allowed (red mark), red when it certainly is. Hollow: shown only.",
        "zh": "线右侧表示 B 更好。实心：参与判定的指标，确定未超出允许范围（红色刻度）为绿色，"
        "确定超出为红色。空心：仅供参考。",
    },
    "pair": {"en": "pair {pair}", "zh": "第 {pair} 对"},
    "overall": {"en": "overall (t)", "zh": "总体（t）"},
    "overall_bootstrap": {"en": "overall (bootstrap)", "zh": "总体（自助法）"},
    "cdf": {"en": "How long requests took", "zh": "请求耗时"},
    "cdf_note": {
        "en": "Share of successful requests that took at most so long, from the moment they were due.",
        "zh": "自应发送时刻起，在该时长之内完成的成功请求所占比例。",
    },
    "ttft_cdf": {"en": "How long the first token took", "zh": "首 token 耗时"},
    "ttft_cdf_note": {
        "en": "From the moment a request was due to its first token, reasoning included.",
        "zh": "自请求应发送时刻起到首个 token（含推理内容）的时间。",
    },
    "share_of_gaps": {"en": "share of gaps", "zh": "间隔比例"},
    "load_latency": {"en": "Throughput against latency", "zh": "吞吐与延迟"},
    "load_latency_note": {
        "en": "One point per load that was tried, joined in the order of the load. Green kept the limits, a red cross "
        "broke them, a hollow point decides nothing.",
        "zh": "每个点为一次尝试的负载，按负载大小相连。绿色满足限值，红叉超出限值，空心点未能判定。",
    },
    "users_of_cell": {"en": "{value:g} users", "zh": "{value:g} 个用户"},
    "rate_of_cell": {"en": "{value:.4g} requests per second", "zh": "每秒 {value:.4g} 个请求"},
    "series": {"en": "Over time", "zh": "随时间的变化"},
    "series_note": {
        "en": "One value per stretch of time, and its trend: red grows by more than allowed, green does not.",
        "zh": "每个时段一个值及其趋势：红色表示增长超过允许值，绿色表示没有。",
    },
    "cells": {"en": "Every load that was tried", "zh": "各级负载"},
    "cell_load": {"en": "load", "zh": "负载"},
    "cell_kept": {"en": "kept", "zh": "满足限值"},
    "yes": {"en": "yes", "zh": "是"},
    "no": {"en": "no", "zh": "否"},
    "open": {"en": "open", "zh": "未定"},
    "warm_up": {"en": "warm-up", "zh": "预热"},
    "cpus_axis": {"en": "CPUs", "zh": "CPU 数"},
    "share": {"en": "share of requests", "zh": "请求比例"},
    "latency_axis": {"en": "latency, ms", "zh": "延迟，毫秒"},
    "throughput": {"en": "Every run, in the order it was done", "zh": "按先后顺序的每次运行"},
    "throughput_note": {
        "en": "A slope that both sides share is the machine's and not theirs; pairs cancel it.",
        "zh": "双方共有的变化来自机器而非版本，成对比较会将其抵消。",
    },
    "seconds_axis": {"en": "seconds since the start", "zh": "开始后的秒数"},
    "timeline": {"en": "Every request in time", "zh": "随时间的每个请求"},
    "timeline_note": {
        "en": "Failed requests are crosses; warm-up is grey. Below, on the same axis: CPUs in use, and the servers' "
        "memory where it was read.",
        "zh": "叉号为失败的请求，灰色为预热。下方同轴：占用的 CPU 数，以及所读取的服务器内存。",
    },
    "machine_cpu": {"en": "machine CPU", "zh": "整机 CPU"},
    "failed": {"en": "failed", "zh": "失败"},
    "confusion": {"en": "Where A and B differ", "zh": "A 与 B 的差异"},
    "confusion_note": {
        "en": "Calls by what A (row) and B (column) said. Off the diagonal they disagree.",
        "zh": "按 A（行）与 B（列）的回答统计的通话数。对角线以外为不一致。",
    },
    "f1": {"en": "F1 of each category", "zh": "各类别的 F1"},
    "f1_note": {"en": "Against the labels of {calls} calls.", "zh": "以 {calls} 通通话的标签为准。"},
    "gaps": {"en": "Gaps between events of a stream", "zh": "流中事件的间隔"},
    "gaps_note": {
        "en": "An event may carry several tokens, so these are not times between tokens.",
        "zh": "一个事件可能包含多个 token，因此这不是 token 之间的时间。",
    },
    "gap_axis": {"en": "gap, ms", "zh": "间隔，毫秒"},
    "events_axis": {"en": "events", "zh": "事件数"},
    "slowest": {"en": "Slowest requests", "zh": "最慢的请求"},
    "side": {"en": "side", "zh": "版本"},
    "call": {"en": "call", "zh": "通话"},
    "at": {"en": "at, s", "zh": "时刻，秒"},
    "latency_ms": {"en": "latency, ms", "zh": "延迟，毫秒"},
    "trace": {"en": "trace", "zh": "链路"},
    "settings": {"en": "What differs between A and B", "zh": "A 与 B 的不同设置"},
    "setting": {"en": "setting", "zh": "设置"},
    "settings_none": {"en": "No differing setting is known.", "zh": "没有已知的不同设置。"},
    "machine": {"en": "Machine and conditions", "zh": "机器与条件"},
    "cpu": {"en": "CPU", "zh": "CPU"},
    "memory": {"en": "memory", "zh": "内存"},
    "system": {"en": "system", "zh": "系统"},
    "load_before": {"en": "load average before", "zh": "开始前的平均负载"},
    "versions": {"en": "versions", "zh": "版本"},
    "generator": {"en": "load generator", "zh": "负载生成器"},
    "generator_note": {
        "en": "at most {cpu:.0%} of one CPU; timers late by at most {lag:.1f} ms (median of a run)",
        "zh": "最多占一个 CPU 的 {cpu:.0%}；定时器最多迟 {lag:.1f} 毫秒（各次运行的中位数）",
    },
    "server": {"en": "server", "zh": "服务器"},
    "server_a": {"en": "server A", "zh": "服务器 A"},
    "server_b": {"en": "server B", "zh": "服务器 B"},
    "quota": {"en": "quota {quota:g} CPUs", "zh": "配额 {quota:g} 个 CPU"},
    "governor": {"en": "CPU governor", "zh": "CPU 调频策略"},
    "revision": {"en": "git revision", "zh": "git 版本"},
    "resumed": {"en": "resumed", "zh": "续跑"},
    "work_pattern": {
        "en": "{dialect}, {calls} calls ({labelled} labelled), arrivals: {pattern}",
        "zh": "{dialect}，{calls} 通通话（{labelled} 通带标签），到达方式：{pattern}",
    },
    "work": {"en": "work", "zh": "工作量"},
    "work_closed": {
        "en": "{dialect}, {calls} calls ({labelled} labelled), {users} users, each sending when its last answer came",
        "zh": "{dialect}，{calls} 通通话（{labelled} 通带标签），{users} 个用户，收到回答后再发下一个",
    },
    "work_open": {
        "en": "{dialect}, {calls} calls ({labelled} labelled), {rate:g} requests per second on a fixed schedule",
        "zh": "{dialect}，{calls} 通通话（{labelled} 通带标签），按固定时刻每秒 {rate:g} 个请求",
    },
    "command": {"en": "command", "zh": "命令"},
    "digest": {"en": "SHA-256 of the work", "zh": "工作量的 SHA-256"},
    "no_plots": {
        "en": "This browser cannot unpack the plots; the tables are complete.",
        "zh": "此浏览器无法解压图表；表格是完整的。",
    },
    # several folders
    "beside_note": {
        "en": "They were not measured in turns: what the machine did in between is in these ratios, so there is no "
        "verdict; for one, use compare or gate.",
        "zh": "这些结果并非交替测得：比值中也包含期间机器状态的变化，因此不作判定；如需判定请用 compare 或 gate。",
    },
    "beside_differs": {"en": "What else differs:", "zh": "其他不同之处："},
    "beside_same": {
        "en": "No other difference of machine, software, scenario or server is known.",
        "zh": "机器、软件、场景与服务器没有已知的其他不同。",
    },
    "beside_unfinished": {"en": "(interrupted)", "zh": "（被中断）"},
    "beside_knee_users": {"en": "knee, users", "zh": "拐点，用户数"},
    "beside_knee_qps": {"en": "highest throughput, requests per second", "zh": "最大吞吐，每秒请求数"},
    "beside_capacity_rate_per_s": {"en": "capacity, requests per second", "zh": "容量，每秒请求数"},
    "beside_capacity_broken_rate_per_s": {
        "en": "lowest rate that was not kept",
        "zh": "不满足目标的最低速率",
    },
    "report_at": {"en": "report", "zh": "报告"},
    "created": {"en": "created {when}", "zh": "生成于 {when}"},
    "reasons": {"en": "Reasons", "zh": "原因"},
}


def say(key: str, lang: Language, **values: Any) -> str:
    """The sentence ``key`` with ``values`` filled in."""
    text = TEXTS[key][lang]
    return text.format(**values) if values else text


def say_meaning(summary: Mapping[str, Any], lang: Language) -> str:
    """What a verdict means, for a run or a comparison."""
    verdict = summary["verdict"]
    own = f"meaning_{summary['kind']}_{verdict}"
    if summary["kind"] != "run" and own in TEXTS:
        return say(own, lang)
    if summary["kind"] == "compare" or verdict == "INVALID":
        return say(f"meaning_{verdict}", lang)
    return say(
        "meaning_run_valid" if verdict == "PASS" and not summary.get("objective") else f"meaning_run_{verdict}", lang
    )


def say_finding(finding: Mapping[str, Any], lang: Language) -> str:
    """The sentence of a verdict's finding."""
    values = dict(finding["values"])
    if "metric" in values:
        values["metric"] = TEXTS[values["metric"]][lang]
    return say(finding["key"], lang, **values)
