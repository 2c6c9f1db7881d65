"""The style sheet of a plan's picture."""

STYLE = """
:root { --ground:#fff; --panel:#f6f8fa; --ink:#1c2430; --faint:#5d6b7c; --rule:#dde3ea; --frost:#0b84c6;
  --cached:#2b6cb0; --frozen:#66788c; --packed:#24808a; --int8:#6c5ab5; --learning:#c2541b; --bar:#2b6cb0;
  --m0:#66788c; --m1:#d98a2b; --m2:#c2541b; --m3:#8f3d63; --m4:#3d9a5f; --m5:#24808a; --m6:#2b6cb0; --m7:#b6c1cd; }
@media (prefers-color-scheme: dark) {
  :root { --ground:#12161c; --panel:#1a2029; --ink:#e4e9f0; --faint:#93a1b3; --rule:#2c3644; --frost:#6cc7f5;
    --cached:#2f74bd; --frozen:#5d6e82; --packed:#25828c; --int8:#7563c4; --learning:#c2541b; --bar:#4a8fd6;
    --m0:#5d6e82; --m1:#d98a2b; --m2:#c95a20; --m3:#a04a72; --m4:#3d9a5f; --m5:#25828c; --m6:#2f74bd; --m7:#3a4656; } }
* { box-sizing:border-box; }
body { margin:0; background:var(--ground); color:var(--ink); line-height:1.45; font-size:15px;
  font-family:system-ui,-apple-system,"Segoe UI",Roboto,"PingFang SC","Noto Sans CJK SC","Microsoft YaHei",sans-serif; }
header, main { max-width:1080px; margin:0 auto; padding:0 24px; }
header { padding-top:32px; } header p { color:var(--faint); margin:4px 0 20px; overflow-wrap:anywhere; }
h1 { font-size:26px; margin:0; overflow-wrap:anywhere; } h2 { font-size:18px; margin:0 0 12px; }
section { margin:28px 0; padding-top:20px; border-top:1px solid var(--rule); }
.tiles { display:grid; grid-template-columns:repeat(auto-fit,minmax(190px,1fr)); gap:14px; }
.tile { background:var(--panel); border:1px solid var(--rule); border-radius:10px; padding:14px 16px; }
.tile .name, .tile .note { color:var(--faint); font-size:13px; } .tile .value { font-size:28px; font-weight:650; }
.warnings li { color:var(--learning); } .sentence { margin:0 0 10px; font-size:16px; }
.small { color:var(--faint); font-size:13px; margin:6px 0 14px; }
.legend { list-style:none; display:flex; flex-wrap:wrap; gap:4px 22px; margin:0 0 14px; padding:0; font-size:14px; }
.legend i, td i { display:inline-block; width:13px; height:13px; border-radius:3px; margin-right:7px; vertical-align:-2px; }
.parts td i { margin-right:3px; }
i.cached { background:var(--cached); } i.frozen { background:var(--frozen); } i.packed { background:var(--packed); }
i.int8 { background:var(--int8); } i.learning { background:var(--learning); }
.scroll { overflow-x:auto; }
svg.network { width:100%; min-width:720px; height:auto; display:block; }
svg .cached { fill:var(--cached); } svg .frozen { fill:var(--frozen); } svg .packed { fill:var(--packed); }
svg .int8 { fill:var(--int8); } svg .learning { fill:var(--learning); }
svg .edge { stroke:var(--ground); stroke-width:1; } svg .lead { stroke:var(--faint); stroke-width:.8; fill:none; }
svg .tag { fill:var(--panel); stroke:var(--rule); } svg text { font-size:13px; fill:var(--ink); }
svg .number { font-size:12px; text-anchor:middle; } svg .label { fill:#fff; font-weight:600; text-anchor:middle; }
svg .label { paint-order:stroke; stroke-width:8px; stroke-linejoin:round; }
svg .on-cached { stroke:var(--cached); } svg .on-frozen { stroke:var(--frozen); } svg .on-packed { stroke:var(--packed); }
svg .on-int8 { stroke:var(--int8); } svg .on-learning { stroke:var(--learning); }
svg .frost { stroke:var(--frost); stroke-width:3; stroke-dasharray:7 4; fill:none; }
svg .side.end { text-anchor:end; } svg .side .name { fill:var(--frost); font-weight:700; }
table { border-collapse:collapse; font-variant-numeric:tabular-nums; font-size:14px; }
th, td { padding:5px 12px; border-bottom:1px solid var(--rule); text-align:right; }
th { color:var(--faint); font-weight:500; white-space:nowrap; }
th:first-child, td:first-child { text-align:left; padding-left:0; }
code { font-family:ui-monospace,"SF Mono",Menlo,Consolas,"Noto Sans Mono CJK SC",monospace; font-size:13px; overflow-wrap:anywhere; }
.parts { width:100%; } .parts th:nth-child(2), .parts td:nth-child(2), .parts th:nth-child(3), .parts td:nth-child(3) { text-align:left; }
.parts td:first-child { color:var(--faint); } .parts td:nth-child(4) { white-space:nowrap; }
.left th, .left td { text-align:left; vertical-align:top; } .left td:nth-child(3) { overflow-wrap:anywhere; min-width:260px; }
.left td:nth-child(2), .left td:nth-child(4), .left td:last-child { white-space:nowrap; }
.left td:first-child { white-space:nowrap; }
.yes { color:var(--frost); } .no, .left td:last-child { color:var(--faint); }
.stack { display:flex; height:46px; border-radius:8px; overflow:hidden; background:var(--rule); }
.stack span { flex:0 1 0; min-width:2px; }
.m0 { background:var(--m0); } .m1 { background:var(--m1); } .m2 { background:var(--m2); } .m3 { background:var(--m3); }
.m4 { background:var(--m4); } .m5 { background:var(--m5); } .m6 { background:var(--m6); } .m7 { background:var(--m7); }
.meter { height:14px; border-radius:4px; background:var(--panel); overflow:hidden; }
.meter i { display:block; height:100%; width:auto; margin:0; border-radius:4px; background:var(--bar); min-width:2px; }
.stack.room { height:12px; margin:0 0 16px; border:1px solid var(--rule); background:var(--panel); border-radius:4px; }
.run { background:var(--bar); }
.bars { width:100%; } .bars td:first-child { min-width:180px; }
.bars th:nth-child(2) { width:45%; } .bars td:nth-child(3), .bars td:nth-child(4) { white-space:nowrap; }
"""
