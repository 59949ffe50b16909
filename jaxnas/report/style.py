"""The report's style sheet. Dark colours are for screens only, so every report prints on white.

The seven series colours are those of Okabe & Ito, "Color Universal Design",
https://jfly.uni-koeln.de/color/, black left out, adjusted for contrast with either background.
"""

CSS = """
:root {
  color-scheme: light dark;
  --page: #fff; --card: #f5f6f8; --rule: #d9dde3; --ink: #1a1f27; --soft: #566070;
  --accent: #0067a3; --grey: #6b7480;
  --k0: #0072b2; --k1: #d55e00; --k2: #00805e; --k3: #b0548a;
  --k4: #b97700; --k5: #2a93d0; --k6: #8f7d00;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --page: #12151a; --card: #1b2027; --rule: #343b46; --ink: #e6e9ee; --soft: #a3adba;
    --accent: #6cbcf0; --grey: #a0a8b4;
    --k0: #4aa8e8; --k1: #f58a4b; --k2: #35c69b; --k3: #dd8fbc;
    --k4: #eeb040; --k5: #8fd0f7; --k6: #e6da55;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
}
main, header, footer { max-width: 1160px; margin: 0 auto; padding: 0 20px; }
header { padding-top: 36px; }
footer { padding-bottom: 36px; color: var(--soft); font-size: 14px; }
h1 { font-size: 30px; line-height: 1.2; margin: 4px 0 12px; overflow-wrap: anywhere; }
h2 { font-size: 21px; margin: 44px 0 8px; padding-top: 12px; border-top: 1px solid var(--rule); }
h3 { font-size: 16px; margin: 24px 0 6px; }
p { margin: 8px 0; max-width: 76ch; }
.eyebrow { color: var(--soft); font-size: 14px; margin: 0; }
.verdict { font-size: 18px; }
.note, figcaption, caption { color: var(--soft); font-size: 14px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 10px;
  margin: 20px 0 0; }
.tiles > div { background: var(--card); border-radius: 8px; padding: 10px 14px; }
.tiles dt { color: var(--soft); font-size: 13px; }
.tiles dd { margin: 0; font-size: 21px; font-variant-numeric: tabular-nums; }
.tiles small { display: block; color: var(--soft); font-size: 13px; }
.grid-2, .grid-3 { display: grid; gap: 16px 24px; align-items: start; }
.grid-2 { grid-template-columns: repeat(auto-fit, minmax(min(440px, 100%), 1fr)); }
.grid-3 { grid-template-columns: repeat(auto-fill, minmax(min(320px, 100%), 1fr)); }
figure { margin: 12px 0; min-width: 0; break-inside: avoid; }
figure h3 { margin: 0 0 2px; font-size: 14px; font-weight: 600; overflow-wrap: anywhere; }
figure h3 span { color: var(--soft); font-weight: 400; }
figure svg { display: block; width: 100%; height: auto; max-width: 640px; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 20px; list-style: none; padding: 0;
  margin: 12px 0 0; font-size: 14px; }
.legend li { display: flex; align-items: center; gap: 7px; overflow-wrap: anywhere; }
.swatch { width: 34px; height: 12px; flex: none; }
.bar { width: 150px; height: 14px; display: block; margin-top: 3px; }
svg text { font-size: 12px; fill: var(--soft); font-variant-numeric: tabular-nums; }
svg text.name { fill: var(--ink); }
.grid { stroke: var(--rule); stroke-width: 1; }
.axis { stroke: var(--soft); stroke-width: 1; }
.whisker { stroke: var(--ink); stroke-width: 1.4; }
.line { fill: none; stroke: var(--c); stroke-width: 2; stroke-linejoin: round; }
.tail { stroke-width: 1; opacity: .6; }
.band { fill: var(--c); opacity: .16; }
.fill { fill: var(--c); }
.node { fill: none; stroke: var(--ink); stroke-width: 1.5; }
.edge { fill: none; stroke: var(--soft); stroke-width: 1.5; }
.tip { fill: var(--soft); }
.dots { fill: none; stroke: var(--c); stroke-width: 4.5; stroke-linecap: round; opacity: .6; }
.cross { fill: none; stroke: var(--c); stroke-width: 1.4; }
.c0 { --c: var(--k0); } .c1 { --c: var(--k1); } .c2 { --c: var(--k2); } .c3 { --c: var(--k3); }
.c4 { --c: var(--k4); } .c5 { --c: var(--k5); } .c6 { --c: var(--k6); } .grey { --c: var(--grey); }
.scroll { overflow-x: auto; margin: 14px 0; }
.scroll:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: 6px; position: sticky; left: 0;
  max-width: min(76ch, calc(100vw - 40px)); }
th, td { padding: 5px 12px 5px 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--rule); }
thead th { vertical-align: bottom; color: var(--soft); font-weight: 600; }
tbody th { font-weight: 500; }
th.num, td.num { text-align: right; white-space: nowrap; }
td.wide { min-width: 260px; overflow-wrap: anywhere; }
pre { background: var(--card); border-radius: 8px; padding: 12px 14px; overflow-x: auto;
  font: 13px/1.45 ui-monospace, "Cascadia Mono", Menlo, Consolas, monospace; }
@media (max-width: 600px) {
  main, header, footer { padding: 0 14px; }
  header { padding-top: 20px; }
  h1 { font-size: 24px; }
  .verdict { font-size: 16px; }
  .tiles { grid-template-columns: 1fr 1fr; }
  .grid-2 svg text { font-size: 13px; }
}
@media print {
  body { font-size: 10pt; }
  main, header, footer { max-width: none; padding: 0; }
  table { font-size: 7.5pt; }
  th, td { padding-right: 6px; }
  .grid-2 { grid-template-columns: 1fr 1fr; }
  .grid-3 { grid-template-columns: 1fr 1fr 1fr; }
  h2, h3, caption { break-after: avoid; }
  tr, pre { break-inside: avoid; }
  .scroll, pre { overflow: visible; }
  pre { white-space: pre-wrap; }
}
"""
