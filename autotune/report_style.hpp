// The style sheet of the HTML report.
#pragma once

namespace q4::autotune {

/// Colours are named once for light and once for dark; the plots use the names.
constexpr const char* kReportStyle = R"css(
:root { color-scheme: light dark;
  --page: #f6f6f4; --card: #ffffff; --ink: #14130f; --soft: #5b5a55; --faint: #8d8b84; --grid: #e6e5df; --rule: #c9c8c0;
  --tuned: #2467c4; --default: #7b7a73; --dense: #d4570f; --floor: #14130f; --good: #17713f; --bad: #b3261e;
  --k0: #3f82dd; --k1: #1ba672; --k2: #dc9a08; --k3: #7a63d2; --k4: #d9556b; --k5: #5b8a2a; --k6: #8d8b84;
}
@media (prefers-color-scheme: dark) { :root {
  --page: #121211; --card: #1c1c1a; --ink: #f4f3ee; --soft: #bcbab1; --faint: #8f8d85; --grid: #2e2e2b; --rule: #4a4945;
  --tuned: #6ea8f5; --default: #a3a199; --dense: #f08a4b; --floor: #f4f3ee; --good: #6fce97; --bad: #f2857d;
  --k0: #5b9bf0; --k1: #2fb985; --k2: #d9a01c; --k3: #9c87ee; --k4: #ea7486; --k5: #86b653; --k6: #8f8d85;
} }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto,
  "DejaVu Sans", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 36px 24px 60px; }
h1 { font-size: 28px; line-height: 1.2; margin: 2px 0 4px; letter-spacing: -0.01em; }
h2 { font-size: 19px; margin: 40px 0 4px; } h3 { font-size: 16px; margin: 0; }
p { margin: 4px 0; } .over { color: var(--soft); font-size: 13px; letter-spacing: 0.06em; text-transform: uppercase; }
.soft, .note { color: var(--soft); } .note { font-size: 13.5px; max-width: 76ch; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(138px, 1fr)); gap: 12px; margin: 22px 0 0; }
.tile, .card { background: var(--card); border: 1px solid var(--grid); border-radius: 10px; }
.tile { padding: 14px 16px; } .tile b { display: block; font-size: 25px; font-weight: 620; line-height: 1.25; }
.tile span { color: var(--soft); font-size: 13px; }
.card { padding: 16px 18px; margin: 14px 0; } .card, .scroll { overflow-x: auto; }
.head { display: flex; flex-wrap: wrap; gap: 4px 18px; align-items: baseline; margin-bottom: 8px; }
.plots { display: grid; grid-template-columns: minmax(0, 3fr) minmax(0, 2fr); gap: 18px; }
@media (max-width: 860px) { .plots { grid-template-columns: minmax(0, 1fr); } }
figure { margin: 0; } figcaption { font-size: 13.5px; color: var(--soft); margin-bottom: 2px; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { fill: var(--soft); font: 12px system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
svg .tick { font-variant-numeric: tabular-nums; } svg .label { fill: var(--ink); }
.grid { stroke: var(--grid); } .axis { stroke: var(--rule); }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; }
.hit { fill: transparent; } .whisker { fill: none; stroke-width: 1.4; }
.mark { stroke: var(--card); stroke-width: 1.2; }
.s-tuned { stroke: var(--tuned); } .s-tuned .mark { fill: var(--tuned); } .s-tuned .whisker { stroke: var(--tuned); }
.s-default { stroke: var(--default); } .s-default .mark { fill: var(--default); }
.s-dense { stroke: var(--dense); stroke-dasharray: 7 4; } .s-dense .mark { fill: var(--dense); stroke-dasharray: none; }
.s-floor { stroke: var(--floor); stroke-width: 1.5; stroke-dasharray: 2 4; }
.s-other { stroke: none; } .s-other .mark { fill: var(--faint); fill-opacity: 0.65; stroke: none; }
g.s-tuned, g.s-default, g.s-dense, g.s-other { stroke: none; }
.zero { stroke: var(--default); stroke-width: 1.5; } .within { fill: var(--faint); fill-opacity: 0.14; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: 13px; color: var(--soft); margin: 2px 0 4px; }
.legend span { display: inline-flex; align-items: center; gap: 6px; } .legend svg { width: 30px; flex: none; }
.map text { fill: var(--ink); } .map .who { fill: var(--soft); font-size: 10.5px; } .map .gain { font-weight: 600; }
.map .kept { fill: var(--soft); font-weight: 400; } .map rect.cell { fill-opacity: 0.3; }
.f0 { fill: var(--k0); } .f1 { fill: var(--k1); } .f2 { fill: var(--k2); } .f3 { fill: var(--k3); } .f4 { fill: var(--k4); }
.f5 { fill: var(--k5); } .f6 { fill: var(--k6); }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th { text-align: left; color: var(--soft); font-weight: 560; border-bottom: 1px solid var(--rule); }
th, td { padding: 4px 12px 4px 0; vertical-align: top; } tr + tr td { border-top: 1px solid var(--grid); }
td.n, th.n { text-align: right; white-space: nowrap; } td.t { font-family: ui-monospace, "DejaVu Sans Mono", monospace;
  font-size: 12px; } .good { color: var(--good); } .bad { color: var(--bad); }
details { margin-top: 12px; } summary { cursor: pointer; color: var(--soft); font-size: 13.5px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 3px 22px; margin: 0; font-size: 14px; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
@media print { details { display: block; } body { background: #fff; } .card, .tile { break-inside: avoid; } }
)css";

}  // namespace q4::autotune
