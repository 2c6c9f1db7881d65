"""The style sheet of report.html."""

STYLE = """
:root { --ground:#fff; --panel:#f6f8fa; --ink:#1c2430; --faint:#5d6b7c; --rule:#dde3ea;
  --line0:#2f6fb3; --line1:#d9662b; --line2:#3d9a5f; --line3:#8a5bb5; --right:47,111,179; --wrong:217,80,60; }
@media (prefers-color-scheme: dark) {
  :root { --ground:#12161c; --panel:#1a2029; --ink:#e4e9f0; --faint:#93a1b3; --rule:#2c3644;
    --line0:#6aa9ee; --line1:#f0925c; --line2:#6cc48f; --line3:#b692dd; --right:86,150,220; --wrong:226,104,84; } }
* { box-sizing:border-box; }
body { margin:0; background:var(--ground); color:var(--ink); line-height:1.45; font-size:15px;
  font-family:system-ui,-apple-system,"Segoe UI",Roboto,"PingFang SC","Noto Sans CJK SC","Microsoft YaHei",sans-serif; }
header, main { max-width:1060px; margin:0 auto; padding:0 24px; }
header { padding-top:32px; } header p { color:var(--faint); margin:4px 0 20px; }
h1 { font-size:26px; margin:0; overflow-wrap:anywhere; } h2 { font-size:18px; margin:0 0 12px; }
section { margin:28px 0; padding-top:20px; border-top:1px solid var(--rule); }
.tiles { display:grid; grid-template-columns:repeat(auto-fit,minmax(190px,1fr)); gap:14px; }
.tile { background:var(--panel); border:1px solid var(--rule); border-radius:10px; padding:14px 16px; }
.tile .name, .tile .interval { color:var(--faint); font-size:13px; } .tile .value { font-size:28px; font-weight:650; }
.notes { color:var(--faint); padding-left:20px; }
.grid2 { display:grid; grid-template-columns:repeat(auto-fit,minmax(400px,1fr)); gap:24px; align-items:start; }
.grid3 { display:grid; grid-template-columns:repeat(auto-fit,minmax(300px,1fr)); gap:24px; align-items:start; }
.scroll { overflow-x:auto; }
figure { margin:0; max-width:420px; } figcaption { color:var(--faint); font-size:13px; margin-bottom:6px; }
svg { width:100%; height:auto; display:block; } svg text { fill:var(--ink); font-size:13px; }
svg .grid { stroke:var(--rule); } svg .diagonal { stroke:var(--faint); stroke-dasharray:5 4; } svg .track { fill:var(--rule); }
table { border-collapse:collapse; font-variant-numeric:tabular-nums; }
table.plain, table.data-rows { font-size:14px; }
.plain th, .plain td, .data-rows th, .data-rows td { padding:5px 12px; border-bottom:1px solid var(--rule); text-align:right; }
.plain th:first-child, .plain td:first-child, .data-rows th:first-child, .data-rows td:first-child { text-align:left; padding-left:0; }
.plain td:first-child { white-space:pre-wrap; overflow-wrap:anywhere; min-width:110px; }
.plain th, .data-rows th { color:var(--faint); font-weight:500; word-break:keep-all; }
.tight th, .tight td { padding:5px 7px; }
.left th, .left td { text-align:left; vertical-align:top; }
.left pre { margin:0; white-space:pre-wrap; overflow-wrap:anywhere; font:inherit; }
.heat { font-size:13px; } .heat th { font-weight:500; padding:4px 8px; text-align:right; }
.heat thead th { max-width:110px; overflow-wrap:anywhere; color:var(--faint); }
.heat td { min-width:40px; padding:7px 8px; text-align:center; border:2px solid var(--ground); border-radius:5px; }
.heat td.right { background:rgba(var(--right),var(--share)); } .heat td.wrong { background:rgba(var(--wrong),var(--share)); }
.heat td.strong { color:#fff; }
.cards { display:grid; grid-template-columns:repeat(auto-fill,minmax(235px,1fr)); gap:12px; }
.cards.wide { grid-template-columns:repeat(auto-fill,minmax(400px,1fr)); }
.card { display:flex; gap:12px; background:var(--panel); border:1px solid var(--rule); border-radius:10px; padding:10px; min-width:0; }
.card img { width:88px; height:88px; object-fit:cover; border-radius:6px; flex:none; } .card > div { min-width:0; font-size:13px; }
.card .true, .card .origin { color:var(--faint); } .card .true b { color:var(--ink); }
.card .origin { overflow:hidden; overflow-wrap:anywhere; display:-webkit-box; -webkit-line-clamp:3; -webkit-box-orient:vertical; }
.data-sizes svg { width:auto; max-width:100%; } .data-sizes rect { fill:var(--line0); }
.data-warnings li { color:var(--line1); }
"""
