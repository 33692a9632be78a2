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
.card { padding: 16px 18px; margin: 14px 0; }
.head { display: flex; flex-wrap: wrap; gap: 4px 18px; align-items: baseline; margin-bottom: 8px; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); gap: 18px; align-items: end; }
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
.map { display: grid; grid-template-columns: minmax(110px, max-content) minmax(0, 1fr); gap: 8px 16px; }
.who, h3 { overflow-wrap: anywhere; } .who b, .who span { display: block; font-weight: 560; } .who span { color: var(--soft); font-size: 12.5px; font-weight: 400; }
.cells { display: grid; grid-template-columns: repeat(auto-fill, minmax(64px, 1fr)); gap: 3px; }
.cells p { grid-column: 1 / -1; }
.cell { border-radius: 4px; padding: 2px 2px 3px; text-align: center; overflow: hidden; line-height: 1.25; }
.cell.f0 { background: color-mix(in srgb, var(--k0) 30%, transparent); } .cell.f1 { background: color-mix(in srgb, var(--k1) 30%, transparent); }
.cell.f2 { background: color-mix(in srgb, var(--k2) 30%, transparent); } .cell.f3 { background: color-mix(in srgb, var(--k3) 30%, transparent); }
.cell.f4 { background: color-mix(in srgb, var(--k4) 30%, transparent); } .cell.f5 { background: color-mix(in srgb, var(--k5) 30%, transparent); }
.cell.f6 { background: color-mix(in srgb, var(--k6) 30%, transparent); } .cell.none { border: 1px dashed var(--rule); }
.cell small { display: block; color: var(--soft); font-size: 11px; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.cell b { display: block; font-size: 13px; } .cell .same { color: var(--soft); font-weight: 400; }
.swatch { width: 14px; height: 14px; border-radius: 3px; opacity: 0.6; }
.swatch.f0 { background: var(--k0); } .swatch.f1 { background: var(--k1); } .swatch.f2 { background: var(--k2); }
.swatch.f3 { background: var(--k3); } .swatch.f4 { background: var(--k4); } .swatch.f5 { background: var(--k5); }
.swatch.f6 { background: var(--k6); }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th { text-align: left; color: var(--soft); font-weight: 560; border-bottom: 1px solid var(--rule); }
th, td { padding: 4px 12px 4px 0; vertical-align: top; } tr + tr td { border-top: 1px solid var(--grid); }
td { overflow-wrap: anywhere; } td.n, th.n { text-align: right; white-space: nowrap; } td.t { font-family: ui-monospace, "DejaVu Sans Mono", monospace;
  font-size: 12px; } .good { color: var(--good); } .bad { color: var(--bad); }
details { margin-top: 12px; } summary { cursor: pointer; color: var(--soft); font-size: 13.5px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 3px 22px; margin: 0; font-size: 14px; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 820px) {  /* a row of a table becomes a block, each cell with its name */
  .stack, .stack tbody { display: block; } .stack th { display: none; }
  .stack tr { display: grid; grid-template-columns: repeat(auto-fill, minmax(104px, 1fr)); gap: 2px 12px; padding: 8px 0;
    border-bottom: 1px solid var(--grid); }
  .stack td, .stack td.n { display: block; padding: 0; border: 0; text-align: left; white-space: normal; }
  .stack td::before { content: attr(data-of); display: block; color: var(--soft); font: 11.5px/1.3 system-ui, sans-serif; }
  .stack td.wide { grid-column: 1 / -1; }
}
@media (max-width: 560px) {
  main { padding: 24px 12px 40px; } .card { padding: 12px; } h1 { font-size: 23px; }
  .map { grid-template-columns: minmax(0, 1fr); gap: 4px; } .who b, .who span { display: inline; } .who b { margin-right: 8px; }
  .cells { margin-bottom: 8px; } svg.plot text { font-size: 15px; } dl { grid-template-columns: minmax(0, 1fr); gap: 0; }
  dd { margin-bottom: 8px; }
}
@media print { details { display: block; } body { background: #fff; } .card, .tile { break-inside: avoid; } }
)css";

}  // namespace q4::autotune
