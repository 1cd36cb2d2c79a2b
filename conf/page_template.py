"""The page that every report extends, a Jinja2 template: its style, and the blocks `title`, `lead`, `content`, `foot`.

A template is a module, because Flower carries no HTML files in an app's bundle.

Trust: public on both sides.
"""

from __future__ import annotations

from typing import Final

PAGE_TEMPLATE: Final = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{% block title required %}{% endblock %}</title>
<style>
:root { --ink: #1c2733; --quiet: #5b6873; --line: #dfe5ea; --wash: #f5f8fa; --first: #0b6e8f; --second: #c9701c;
  --good: #22764a; --warn: #a35a00; --bad: #b3261e; }
* { box-sizing: border-box; }
html { background: #e9eef2; color: var(--ink); -webkit-print-color-adjust: exact; print-color-adjust: exact; }
body { max-width: 62rem; margin: 2.5rem auto; padding: 3rem 3.5rem 2.5rem; background: #fff; border-radius: .6rem;
  box-shadow: 0 1px 3px rgb(28 39 51 / .08), 0 12px 32px rgb(28 39 51 / .06);
  font: 1rem/1.55 "Inter", "Segoe UI", "Helvetica Neue", Arial, "Liberation Sans", sans-serif; }
h1 { margin: 0; font-size: 2rem; line-height: 1.2; letter-spacing: -.015em; overflow-wrap: anywhere; }
h2 { margin: 3rem 0 .4rem; padding-top: 1.6rem; border-top: 1px solid var(--line); font-size: 1.3rem;
  letter-spacing: -.01em; break-after: avoid; }
h3 { margin: 0 0 .2rem; font-size: 1rem; break-after: avoid; }
p { margin: .4rem 0 .9rem; max-width: 46rem; }
.product { margin: 0 0 .6rem; color: var(--first); font-size: .8rem; font-weight: 700; letter-spacing: .12em;
  text-transform: uppercase; }
.lead, .note, figcaption, footer { color: var(--quiet); }
.lead { margin: .5rem 0 0; max-width: none; overflow-wrap: anywhere; }
.note, figcaption { font-size: .875rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(10rem, 1fr)); gap: 1rem; margin: 1.8rem 0 0;
  padding: 0; }
.tiles > div { padding: .9rem 1.1rem; background: var(--wash); border-radius: .5rem; break-inside: avoid; }
.tiles dt { color: var(--quiet); font-size: .8rem; }
.tiles dd { margin: .1rem 0 0; font-size: 1.5rem; font-weight: 600; font-variant-numeric: tabular-nums;
  line-height: 1.25; }
.tiles small { display: block; color: var(--quiet); font-size: .8rem; font-weight: 400; }
.box { margin: 1.4rem 0; padding: 1.1rem 1.4rem; border-left: .3rem solid var(--first); border-radius: .2rem .5rem
  .5rem .2rem; background: var(--wash); break-inside: avoid; }
.box p { max-width: none; }
.box > :first-child { margin-top: 0; }
.box > :last-child { margin-bottom: 0; }
.box ul { margin: .3rem 0 .9rem; padding-left: 1.2rem; }
.box.good { border-color: var(--good); }
.box.warn { border-color: var(--warn); }
.box.bad { border-color: var(--bad); }
.figures { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 1.6rem 2.2rem;
  margin: 1.2rem 0 0; }
figure { margin: 0; break-inside: avoid; }
figure svg { display: block; width: 100%; height: auto; }
figure svg text { font-family: "Inter", "Segoe UI", "Helvetica Neue", Arial, "Liberation Sans", sans-serif !important; }
figcaption { margin-top: .5rem; }
table { width: 100%; margin: 1.1rem 0 .8rem; border-collapse: collapse; font-size: .925rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .5rem 1rem .5rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th:last-child, td:last-child { padding-right: 0; }
thead th { border-bottom: 2px solid var(--ink); color: var(--quiet); font-size: .8rem; font-weight: 600;
  vertical-align: bottom; }
thead { display: table-header-group; }
tbody th { font-weight: 600; }
tbody th small, td small { display: block; color: var(--quiet); font-size: .8rem; font-weight: 400; }
tfoot th, tfoot td { border-bottom: 0; font-weight: 600; }
tr { break-inside: avoid; }
.number { text-align: right; white-space: nowrap; }
.name { overflow-wrap: anywhere; }
.dense { font-size: .85rem; }
.dense th, .dense td { padding-top: .28rem; padding-bottom: .28rem; }
.bar { display: block; width: 100%; min-width: 8rem; height: .75rem; margin-top: .35rem; border-radius: .2rem;
  background: #e6ebef; overflow: hidden; }
.bar > i { display: block; height: 100%; background: var(--second); }
.first { color: var(--first); }
.second { color: var(--second); }
footer { margin-top: 3rem; padding-top: 1.2rem; border-top: 1px solid var(--line); font-size: .8rem; }
footer p { max-width: none; }
@media screen and (max-width: 48rem) {
  body { margin: 0; padding: 1.5rem 1.2rem; border-radius: 0; overflow-x: auto; }
  .figures { grid-template-columns: minmax(0, 1fr); }
}
@page { size: A4; margin: 15mm 16mm; }
@media print {
  html { background: none; font-size: 10.5px; }
  body { max-width: none; margin: 0; padding: 0; border-radius: 0; box-shadow: none; }
  h2 { margin-top: 2rem; padding-top: 1.2rem; }
  p { orphans: 3; widows: 3; }
}
</style>
</head>
<body>
<header>
<p class="product">Cipherward</p>
<h1>{{ self.title() }}</h1>
{% block lead %}{% endblock %}
</header>
<main>
{% block content required %}{% endblock %}
</main>
<footer>
{% block foot %}{% endblock %}
<p>This page is one file: it loads nothing, runs nothing and tells nobody that it was opened.</p>
</footer>
</body>
</html>
"""
