"""The report page's style: light and dark, wide and narrow, screen and paper. States have words and icons besides."""

STYLE = """
:root{--paper:#faf9f6;--card:#fff;--ink:#1c2126;--soft:#5b6570;--line:#dcdad3;--track:#ecebe5;--accent:#1f6f78;
--good:#1d6b3a;--goodbg:#e6f3e9;--warn:#7a5200;--warnbg:#fbf0d5;--bad:#a3221c;--badbg:#fbe7e4;--some:#2b5d8a;--somebg:#e5eff8}
@media (prefers-color-scheme:dark){:root{--paper:#14171a;--card:#1b1f23;--ink:#e6e8ea;--soft:#9aa5af;--line:#31373d;
--track:#262b30;--accent:#63b9c3;--good:#7fd097;--goodbg:#17301f;--warn:#e9c168;--warnbg:#33290f;--bad:#ff9a8f;
--badbg:#3b1a17;--some:#8cc0ee;--somebg:#15293b}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:58rem;margin:0 auto;padding:2.5rem 1.25rem 4rem}
h1,h2,h3,p,dl,dd,ol,ul,figure,table{margin:0}
h1{font-size:clamp(1.6rem,5vw,2.4rem);line-height:1.15;letter-spacing:-.02em;overflow-wrap:anywhere;text-wrap:balance}
h2{font-size:1.25rem;letter-spacing:-.01em;margin-bottom:.35rem}
h3{font-size:1rem;margin:1.4rem 0 .4rem}
a{color:var(--accent);text-underline-offset:.15em;overflow-wrap:anywhere}
a:focus-visible,summary:focus-visible{outline:2px solid var(--accent);outline-offset:2px}
code,pre{font:.85rem/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;overflow-wrap:anywhere}
pre{background:var(--track);padding:.9rem 1rem;border-radius:.5rem;white-space:pre-wrap;margin-top:.9rem}
.kicker{color:var(--soft);font-size:.8rem;font-weight:600;letter-spacing:.09em;text-transform:uppercase;margin-bottom:.3rem}
.verdict{display:flex;gap:1rem;margin-top:1.4rem;padding:1.15rem 1.25rem;border-radius:.75rem;border-left:.4rem solid}
.verdict .icon{font-size:1.7rem;line-height:1.2;font-weight:700;min-width:1.6rem;text-align:center}
.verdict strong{font-size:1.2rem;display:block}
.verdict p{color:var(--ink);margin-top:.15rem;overflow-wrap:anywhere}
.verdict.good{background:var(--goodbg);color:var(--good)}.verdict.some{background:var(--somebg);color:var(--some)}
.verdict.warn{background:var(--warnbg);color:var(--warn)}.verdict.bad{background:var(--badbg);color:var(--bad)}
.mark{display:inline-block;font-size:.85rem;font-weight:600;padding:.08rem .55rem;border-radius:1rem;white-space:nowrap}
.mark.good{background:var(--goodbg);color:var(--good)}.mark.some{background:var(--somebg);color:var(--some)}
.mark.warn{background:var(--warnbg);color:var(--warn)}.mark.bad{background:var(--badbg);color:var(--bad)}
.mark.past{background:var(--track);color:var(--soft)}
.facts{display:grid;grid-template-columns:repeat(3,1fr);background:var(--card);
border:1px solid var(--line);border-radius:.75rem;overflow:hidden;margin-top:1.25rem}
.of4{grid-template-columns:repeat(4,1fr)}
.facts div{box-shadow:0 0 0 1px var(--line);padding:.75rem 1rem}
.facts dt{color:var(--soft);font-size:.8rem}
.facts dd{font-size:1.15rem;font-weight:600;white-space:nowrap;font-variant-numeric:tabular-nums}
.root{color:var(--soft);font-size:.85rem;margin-top:.75rem}
section{margin-top:2.75rem}
.note{color:var(--soft);max-width:46rem;margin-bottom:1rem}
.small{color:var(--soft);font-size:.85rem}
.findings{list-style:none;padding:0;display:grid;gap:.75rem}
.findings li{background:var(--card);border:1px solid var(--line);border-radius:.75rem;padding:.9rem 1.1rem;
overflow-wrap:anywhere}.more{margin-top:.75rem}.facts+table,.facts+p:not(.root){margin-top:1rem}
.findings p+p{margin-top:.3rem}
table{border-collapse:collapse;width:100%}
th,td{text-align:left;padding:.5rem .75rem .5rem 0;border-bottom:1px solid var(--line);vertical-align:top;
font-weight:400}
thead th{color:var(--soft);font-size:.8rem}
.number{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
td:last-child,th:last-child{padding-right:0}
.checked td:last-child{text-align:right;width:6.5rem}
.events .number{width:4rem}.events thead th:first-child{text-align:right}
.events td.small{white-space:nowrap}.events th[scope=row]{font-weight:600}
.events .id{overflow-wrap:anywhere}
.events .small{display:block}
td.small{display:table-cell!important}
section ul{padding-left:1.2rem}section li+li{margin-top:.25rem}.findings li+li{margin-top:0}
details{margin-top:1rem}summary{cursor:pointer;color:var(--accent);font-size:.9rem}
figure{background:var(--card);border:1px solid var(--line);border-radius:.75rem;padding:2rem 0 0;position:relative;
overflow:hidden}
figure .most{position:absolute;top:.5rem;right:1rem;font-weight:600;font-variant-numeric:tabular-nums}
figcaption{display:flex;justify-content:space-between;color:var(--soft);font-size:.8rem;padding:.45rem 1rem .6rem;
border-top:1px solid var(--line)}
.area{display:block;width:100%;height:13rem}
.area .grid{stroke:var(--line);stroke-width:1;vector-effect:non-scaling-stroke}
.area .under{fill:var(--accent);opacity:.14}
.area .curve{fill:none;stroke:var(--accent);stroke-width:2;vector-effect:non-scaling-stroke;stroke-linejoin:round}
.bars{display:grid;gap:.6rem}
.row{display:grid;grid-template-columns:minmax(8rem,14rem) 1fr 4.5rem 7.2rem;gap:.9rem;align-items:center}
.row .name{overflow-wrap:anywhere;line-height:1.3}
.bar{display:block;width:100%;height:.75rem}.bar .track{fill:var(--track)}.bar .fill{fill:var(--accent)}
.span{display:block;width:100%;height:1.1rem;overflow:visible}
.span .axis{stroke:var(--track);stroke-width:2}.span .range{stroke:var(--accent);stroke-width:4;opacity:.45}
.span .end{fill:var(--accent);opacity:.7}.span .dot{fill:var(--accent)}
footer{margin-top:3rem;padding-top:1.25rem;border-top:1px solid var(--line);color:var(--soft);font-size:.9rem}
@media (min-width:56rem){.of6{grid-template-columns:repeat(6,1fr)}}
@media (max-width:40rem){main{padding:1.5rem 1rem 3rem}
.of4,.of6{grid-template-columns:repeat(2,1fr)}
.row{grid-template-columns:1fr auto auto;row-gap:.25rem;column-gap:.75rem}.row .name{grid-column:1}
.row svg,.row>.small:nth-child(2){grid-column:1/-1;grid-row:2}
.events,.events tbody,.events tr,.events td,.events th{display:block;border:0;padding:0;width:auto;text-align:left}
.events thead{display:none}.events tr{padding:.6rem 0;border-bottom:1px solid var(--line)}
.events .number::before{content:"entry "}.events td.number{text-align:left;color:var(--soft);font-size:.85rem}
td.small{display:block!important}
.checked tr{display:grid;grid-template-columns:1fr auto;padding:.55rem 0;border-bottom:1px solid var(--line)}
.checked th,.checked td{border:0;padding:0}.checked th{grid-column:1/-1}
.checked .number{text-align:left;color:var(--soft)}.checked td:last-child{width:auto}}
@media print{:root{--paper:#fff;--card:#fff}body{font-size:11pt}main{max-width:none;padding:0}
section{break-inside:avoid}.findings li,tr{break-inside:avoid}.verdict,.mark,.bar,.area,.span{print-color-adjust:exact;
-webkit-print-color-adjust:exact}a::after{content:" (" attr(href) ")";font-size:.8em}details{display:none}}
""".replace("\n", "")
