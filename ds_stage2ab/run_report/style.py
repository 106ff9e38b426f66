"""How a report looks: a wide window, a phone, and pictures that are small until one is opened."""

from ds_stage2ab.pages.frame import PREDICTION_COLOUR, TRUTH_COLOUR, WRONG_COLOUR

STYLE = f"""
nav{{position:sticky;top:0;z-index:5;background:#fffffff2;border-bottom:1px solid #e3e6e9;padding:.4rem 0;
overflow-x:auto;white-space:nowrap}} nav a{{margin-right:1rem;color:#1f6fb4;text-decoration:none}}
h2{{scroll-margin-top:3rem}} h3{{font-size:1rem;margin:.6rem 0}}
.charts{{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(24rem,100%),1fr));gap:1rem}}
.chart{{min-width:0}} @media(min-width:56rem){{.chart:has(.tall){{grid-column:span 2}}}}
.plot{{height:20rem}} .plot.tall{{height:34rem}}
.good{{color:#1e7b34}} .bad{{color:#b3261e}}
td.wide{{white-space:normal;text-align:left;font-size:.85rem;color:#6b757d}}
tr:has(+tr .wide){{border-bottom:0}}
.shot{{width:13.5rem;max-width:100%}}
.shot .picture{{display:block;width:100%;background-size:100% 100%;cursor:zoom-in}}
.box.truth{{border-color:{TRUTH_COLOUR};border-width:3px}} .box.truth span{{display:none}}
.box.missed{{border-style:dashed}}
.box.missed span{{display:block;top:auto;bottom:-2px;color:#fff;background:{TRUTH_COLOUR}}}
.box.spurious{{border-style:dashed}} .box.wrong{{border-color:{WRONG_COLOUR}}}
.box.wrong span{{background:{WRONG_COLOUR};color:#fff}}
.shot .picture:not(dialog *) .box span{{font-size:9px;line-height:11px}}
body:has(#truth:not(:checked)) .box.truth,body:has(#answer:not(:checked)) .box:not(.truth){{display:none}}
.key{{display:flex;flex-wrap:wrap;gap:.3rem 1.2rem;align-items:center;margin:.6rem 0}}
.key i{{display:inline-block;width:1.1rem;height:.8rem;border:3px solid;margin-right:.4rem;vertical-align:-1px}}
dialog{{border:0;padding:0;background:none;max-width:none;max-height:none;overflow:visible}}
dialog::backdrop{{background:#101418cc}} dialog .picture{{display:block;background-size:100% 100%}}
dialog .box span{{font-size:13px;line-height:17px;max-width:none}} details summary{{cursor:pointer}}
pre{{overflow-x:auto;background:#f6f8f9;padding:.6rem}}
@media(max-width:40rem){{body{{margin:.8rem auto;padding:0 .7rem}} .shot{{width:calc(50% - .5rem)}}
.plot{{height:17rem}} table{{font-size:.85rem}} th,td{{padding:.2rem .45rem}}}}
"""
KEYS = f"""<div class=key><label><input type=checkbox id=truth checked> <i style='color:{TRUTH_COLOUR}'></i>true</label>
<label><input type=checkbox id=answer checked> <i style='color:{PREDICTION_COLOUR}'></i>answered</label>
<span><i style='color:{WRONG_COLOUR}'></i>answered under a wrong name</span>
<span><i style='color:#6b757d;border-style:dashed'></i>without a partner</span></div>"""
"""What the colours of a picture mean; the boxes of a kind can be hidden."""
