"""The page's CSS, and its JavaScript for choosing a metric and showing values on hover."""

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; color: #1d2329; background: #fff; font: 16px/1.55 system-ui, sans-serif; }
header, main, nav { max-width: 66rem; margin: 0 auto; padding: 0 1.1rem; }
header { padding-top: 2rem; }
h1 { margin: 0; font-size: 1.9rem; line-height: 1.2; }
.subtitle { margin: .3rem 0 1rem; color: #56616b; }
nav { position: sticky; top: 0; z-index: 1; padding-top: .5rem; padding-bottom: .5rem;
  overflow-x: auto; white-space: nowrap; background: #fff; border-bottom: 1px solid #dde2e6; }
nav a { display: inline-block; margin-right: 1rem; color: #0b5c94; text-decoration: none; }
nav a:hover { text-decoration: underline; }
nav label { margin-right: 1rem; font-weight: 600; }
nav select { max-width: 12rem; padding: .15rem .3rem; font: inherit; }
p, li, h1, h2, h3, figcaption, summary { overflow-wrap: anywhere; }
h3 { margin: 1.2rem 0 .3rem; font-size: 1.05rem; }
h3.of { color: #56616b; }
ul { max-width: 46rem; padding-left: 1.2rem; }
li { margin: .35rem 0; }
.banner { margin: .6rem 0; padding: .5rem .9rem; font-weight: 600; background: #fff5e0;
  border: 2px solid #d58a00; }
.absent { max-width: 46rem; margin: 1rem 0; padding: .6rem .9rem; color: #3d4750;
  background: #f5f7f8; border-left: 4px solid #8a96a0; }
h2 { margin: 2.2rem 0 .6rem; font-size: 1.35rem; scroll-margin-top: 4.6rem; }
p { max-width: 46rem; }
.warning { max-width: 46rem; margin: .7rem 0; padding: .6rem .9rem; background: #fff5e0;
  border-left: 4px solid #d58a00; }
details { max-width: 46rem; margin: .5rem 0; }
summary { cursor: pointer; color: #0b5c94; }
.scroll, pre { overflow-x: auto; }
/* shadows at the ends that hold more: the white covers move with the content */
.scroll { background: linear-gradient(90deg, #fff 40%, #fff0) 0 0 / 2.5rem 100% local,
    linear-gradient(270deg, #fff 40%, #fff0) 100% 0 / 2.5rem 100% local,
    linear-gradient(90deg, #0004, #0000) 0 0 / .9rem 100% scroll,
    linear-gradient(270deg, #0004, #0000) 100% 0 / .9rem 100% scroll;
  background-repeat: no-repeat; }
.wide::before { display: none; content: "scroll →"; color: #56616b; font-size: .8rem;
  text-align: right; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
.caption { margin: .9rem 0 .3rem; color: #56616b; font-size: .92rem; }
th, td { padding: .3rem .55rem; text-align: right; border-bottom: 1px solid #e6eaed; }
td { white-space: nowrap; }
th { border-bottom: 2px solid #b9c2ca; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 1.4rem 0; }
figure .plot { position: relative; width: 100%; max-width: var(--wide);
  min-width: min(34rem, var(--wide)); }
@media (max-width: 44rem) { figure .plot { min-width: min(54rem, var(--wide)); } }
@media (min-width: 44.01rem) { nav { overflow-x: visible; white-space: normal; } }
figure img { display: block; width: 100%; height: auto; }
figure .marks { position: absolute; inset: 0; width: 100%; height: 100%; }
.marks circle { fill: #fff0; stroke: none; cursor: crosshair; }
.marks circle:hover { stroke: #1d2329; stroke-width: 1.5; }
#tip { position: fixed; z-index: 2; max-width: min(22rem, 92vw); padding: .35rem .6rem;
  white-space: pre-line; pointer-events: none; color: #fff; background: #1d2329;
  border-radius: .3rem; font-size: .85rem; line-height: 1.4; }
#tip:empty { display: none; }
figcaption { max-width: 46rem; color: #56616b; font-size: .92rem; }
pre { margin: 0; padding: .8rem; white-space: pre-wrap; background: #f5f7f8; font-size: .82rem;
  line-height: 1.4; }
@media (max-width: 44rem) { pre { white-space: pre; } .wide::before { display: block; }
  th, td { padding: .25rem .28rem; font-size: .8rem; } }
@media print { nav, #tip, .marks { display: none; }
  .scroll, pre { overflow: visible; background: none; }
  th, td { padding: .15rem .25rem; font-size: 7.5pt; white-space: normal; }
  body { font-size: 11pt; }
  figure, table, .warning { break-inside: avoid; } figure .plot { min-width: 0; }
  .wide::before { display: none; } pre { white-space: pre-wrap; } }
"""

SCRIPT = """
"use strict";
(() => {
  const select = document.getElementById("metric");
  const blocks = document.querySelectorAll("[data-metric]");
  const show = (name) => {
    for (const block of blocks) block.hidden = name !== "" && block.dataset.metric !== name;
  };
  const follow = () => {  // a page can be linked to with a metric chosen: report.html#metric=avg
    const asked = location.hash.startsWith("#metric=") ? location.hash.slice(8) : null;
    const named = (value) => value === asked || encodeURIComponent(value) === asked;
    const option = [...select.options].find((one) => named(one.value));
    if (option) select.value = option.value;
    show(select.value);
  };
  if (select) {  // without this script all metrics are there, and nothing to choose
    select.parentNode.hidden = false;
    select.addEventListener("change", () => show(select.value));
    window.addEventListener("hashchange", follow);
    follow();
  }
  let folded = [];
  window.addEventListener("beforeprint", () => {  // paper has nothing to click on
    folded = document.querySelectorAll("details:not([open])");
    for (const one of folded) one.open = true;
  });
  window.addEventListener("afterprint", () => { for (const one of folded) one.open = false; });
  const tip = document.getElementById("tip");
  const place = (event) => {
    const text = event.target.dataset ? event.target.dataset.text : undefined;
    tip.textContent = text || "";
    if (!text) return;
    const box = tip.getBoundingClientRect();
    const left = Math.min(event.clientX + 12, window.innerWidth - box.width - 6);
    const below = event.clientY + 14;
    const top = below + box.height > window.innerHeight ? event.clientY - box.height - 10 : below;
    tip.style.left = Math.max(4, left) + "px";
    tip.style.top = top + "px";
  };
  document.addEventListener("pointerover", place);
  document.addEventListener("pointerdown", place);
  window.addEventListener("scroll", () => { tip.textContent = ""; }, true);
})();
"""
