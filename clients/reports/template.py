"""The words of a site's report, a Jinja2 template for `clients.reports.report`.

Trust: site only.
"""

from __future__ import annotations

from typing import Final

REPORT_TEMPLATE: Final = """\
{% extends "page.html" %}

{% set names = {"auc": "AUC", "accuracy": "accuracy", "brier": "Brier score"} %}
{% set explained = {
  "auc": "how often a positive patient scores above a negative one; 1 is perfect, 0.5 is chance",
  "accuracy": "share of patients called right when 50 % is the border",
  "brier": "mean squared distance between score and outcome; lower is better, always saying 50 % gives 0.25",
} %}
{% set readings = {
  "shared": "shared model is better", "own": "own model is better", "neither": "cannot be told apart",
  "unknown": "cannot be measured here",
} %}
{% set kinds = {"STATISTICS": "Statistics", "TRAIN": "Training", "EVALUATE": "Evaluation"} %}
{% set contents = {
  "STATISTICS": "number of patients; per input the number of values, their sum and their sum of squares",
  "TRAIN": "how training here changed the model" ~ ("; how well the model did before, as sums and counts"
    if epsilon is none else ", with noise"),
  "EVALUATE": "how well the finished model did, as sums and counts" if epsilon is none else "nothing but zeros",
} %}
{% set nothing = "\N{EN DASH}" %}

{% macro plural(count, word) %}{{ count }} {{ word }}{{ "" if count == 1 else "s" }}{% endmacro %}

{% macro listed(keys) %}
{%- for key in keys %}{{ "" if loop.first else " and " if loop.last else ", " }}{{ names[key] }}{% endfor %}
{%- endmacro %}

{% macro number(value) %}{{ nothing if value is none else "%.3f" | format(value) }}{% endmacro %}

{% macro signed(value) -%}
  {{ nothing if value is none else "0.000" if value | round(3) == 0
     else ("%+.3f" | format(value)).replace("-", "\N{MINUS SIGN}") }}
{%- endmacro %}

{% macro measured(resampled, show=number) %}
{% set interval = resampled.interval() if resampled.value is not none else none %}
<td class="number">{{ show(resampled.value) }}
{% if interval and interval[0] < interval[1] -%}
<small>{{ show(interval[0]) }} to {{ show(interval[1]) }}</small>{% endif %}</td>
{% endmacro %}

{% macro over_all(key) %}
{% if is_known(federation, key) -%}
{{ number(federation[key]) }}
{%- if federation[key ~ "_bound"] | round(3) %}&nbsp;±&nbsp;{{ number(federation[key ~ "_bound"]) }}{% endif %}
{%- else -%}
{{ nothing if federation[key] is none else "not known (too few patients)" }}
{%- endif %}
{% endmacro %}

{% macro tile(name, value, small) %}
<div><dt>{{ name }}</dt><dd>{{ value }}<small>{{ small }}</small></dd></div>
{% endmacro %}

{% block title %}Report of {{ site }}{% endblock %}

{% block lead %}
<p class="lead">Data set <b>{{ data }}</b>, predicting <b>{{ label }}</b> · {{ model }} ·
{{ plural(rounds, "training round") }}
{%- if finished is not none %} · run finished {{ finished | moment }}{% endif %}</p>
<dl class="tiles">
{{ tile("Patients to train with", training.records, training.labels.sum() ~ " positive") }}
{{ tile("Patients held out to test", held_out.records, held_out.labels.sum() ~ " positive") }}
{% set auc = measures[0] %}
{{ tile("AUC here, shared model", number(auc.federated.value), "own model " ~ number(auc.local.value)) }}
{% if federation and is_known(federation, "auc") %}
{{ tile("AUC over all sites", number(federation.auc),
        "± " ~ number(federation.auc_bound) ~ ", " ~ federation.records ~ " patients") }}
{% elif federation and federation.auc is not none %}
{{ tile("AUC over all sites", "too few", "patients in most groups to say") }}
{% else %}
{{ tile("AUC over all sites", nothing, "not known") }}
{% endif %}
</dl>
{% endblock %}

{% block content %}
{% set those = "this one held-out patient" if held_out.records == 1
               else "these " ~ held_out.records ~ " held-out patients" %}
<div class="box {{ "warn" if worse else "good" if better and fewest >= few else "" }}">
  <h3>What this run means for this site</h3>
  {% if not known %}
  <p>With n = {{ held_out.records }} the two models cannot be compared.</p>
  {% elif (better or worse) and fewest < few %}
  <p>On {{ those }} the figures favour
  {%- if better %} the shared model by {{ listed(better) }}{% endif %}
  {%- if better and worse %} and{% endif %}
  {%- if worse %} this site's own model by {{ listed(worse) }}{% endif %}, but these are
  <b>too few to rely on</b>.</p>
  {% elif better or worse %}
  <p>On {{ those }} the shared model is
  {%- if better %} <b>better</b> than this site's own model by {{ listed(better) }}{% endif %}
  {%- if better and worse %}, and{% endif %}
  {%- if worse %} <b>worse</b> than this site's own model by {{ listed(worse) }}{% endif %}:
  the 95 % interval of that difference does not hold zero.
  {%- if (better + worse) | length < known | length %} By the other measures the two cannot be told apart.
  {%- endif %}</p>
  {% else %}
  <p>On {{ those }} the shared model and this site's own model <b>cannot be told apart</b>: the 95 % interval of every
  difference holds zero. With n = {{ held_out.records }} that does not show that they are equally good, only that a
  difference, if there is one, is smaller than so few patients can show.</p>
  {% endif %}
  {% if not fewest %}
  <p class="note">They have all the same outcome, so nothing here says how well a model tells patients with
  <b>{{ label }}</b> from patients without.</p>
  {% elif fewest < few %}
  <p class="note">Only {{ fewest }} of {{ those }} {{ "has" if fewest == 1 else "have" }} the rarer outcome. Take every
  figure on this page as rough; with so few, intervals are narrower than they should be.</p>
  {% endif %}
</div>

<h2>Shared model against own model</h2>
<p>The <b class="first">shared model</b> was trained by all sites together, without any record leaving its site. The
<b class="second">own model</b> was trained{{ " for as long" if epsilon is none }} on this site's patients alone. Both
are judged on the same held-out patients, whom neither model has seen.</p>
<table>
  <thead><tr>
    <th>Measure</th><th class="number">Shared model</th><th class="number">Own model</th>
    <th class="number">Shared \N{MINUS SIGN} own</th><th>Reading</th>
  </tr></thead>
  <tbody>
  {% for measure in measures %}
  <tr>
    <th>{{ names[measure.key][0] | upper }}{{ names[measure.key][1:] }}<small>{{ explained[measure.key] }}</small></th>
    {{ measured(measure.federated) }}{{ measured(measure.local) }}{{ measured(measure.difference, signed) }}
    <td>{{ "too few to say" if fewest < few and measure.verdict in ("shared", "own")
           else readings[measure.verdict] }}</td>
  </tr>
  {% endfor %}
  </tbody>
</table>
<p class="note">Below each value: its 95 % interval, from drawing the held-out patients 2000 times anew. The difference
is drawn on the same patients for both models.</p>

<div class="figures">
  <figure>
  {% if roc %}
  {{ roc }}
  <figcaption>Each border between “positive” and “negative” is one point: how many positive patients it finds, against
  how many negative ones it calls positive. The nearer a curve comes to the upper left corner, the better.</figcaption>
  {% else %}
  <h3>ROC curve</h3>
  <figcaption>There is none: it needs held-out patients of both outcomes, and here all have the same.</figcaption>
  {% endif %}
  </figure>
  <figure>
  {{ calibration }}
  <figcaption>Patients grouped by score: of those to whom the model gives 30 %, about 30 in 100 should be positive,
  which is the dotted line. Vertical lines are 95 % intervals; the bars count the shared model's patients in each
  group.</figcaption>
  </figure>
</div>

<h2>All sites together</h2>
{% if federation %}
<p>Sums over the held-out patients of all sites, made under encryption: {{ plural(federation.records, "patient") }},
AUC {{ over_all("auc") | trim }}, accuracy {{ over_all("accuracy") | trim }}, Brier score
{{ number(federation.brier) }}, for the shared model after {{ plural(federation_rounds, "training round") }}. No site
sees the part of another.</p>
<p class="note">± is no estimate but a limit: each site counts its patients in
{{ federation.positive_scores | length }} ranges of score
{%- if smallest_cell > 1 %} and keeps every count of fewer than {{ smallest_cell }} patients to itself{% endif %}, and
the exact figure lies within it wherever those patients stand.</p>
{% elif epsilon is not none %}
<p>There are no figures over all sites for this run: exact counts would undo what the noise in the model updates
promises.</p>
{% else %}
<p>There are no figures over all sites for this run. Sites add their counts only while the same sites take part in every
sum: otherwise two sums could be subtracted to learn about one site.</p>
{% endif %}
<div class="figures">
  {% if federation_calibration %}
  <figure>
  {{ federation_calibration }}
  <figcaption>As above, for all sites' patients: {{ federation.positive_scores | length }} ranges of score, each drawn
  at its middle
  {%- if smallest_cell > 1 %}, without those where counts of fewer than {{ smallest_cell }} hide too much{% endif %}.
  The vertical lines also hold wherever the patients of small counts stand.</figcaption>
  </figure>
  {% endif %}
  {% for curve in curves %}
  <figure>
  {{ curve }}
  {% if loop.last and federation %}
  <figcaption>If the loss of held-out patients rose while that of training patients fell, the model would be learning
  its training patients by heart.</figcaption>
  {% else %}
  <figcaption>How the model changed from round to round
  {%- if loop.first and federation %}; the shaded band is how exactly the AUC of all sites is known, and rounds in
  which it hardly is are left out{% endif %}.
  </figcaption>
  {% endif %}
  </figure>
  {% endfor %}
</div>

<h2>This site's data</h2>
{% set records = training.records + held_out.records %}
{% if gaps %}
<p>Of {{ plural(records, "patient") }}, values are missing in {{ gaps | length }} of {{ plural(columns, "column") }}.
A missing value counts as the average of all sites.</p>
<table class="dense">
  <thead><tr><th>Column</th><th class="number">Missing</th><th class="number">Share</th><th></th></tr></thead>
  <tbody>
  {% for gap in gaps %}
  {% set percent = "%.1f" | format(100 * gap.share) %}
  <tr>
    <td class="name">{{ gap.column }}
    {% if gap.missing == records %}<small>measured for nobody here</small>{% endif %}</td>
    <td class="number">{{ gap.missing }} of {{ records }}</td><td class="number">{{ percent }} %</td>
    <td><span class="bar"><i style="width: {{ percent }}%"></i></span></td>
  </tr>
  {% endfor %}
  </tbody>
</table>
{% else %}
<p>All {{ plural(records, "patient") }} have a value in
{{ "the one column" if columns == 1 else "each of the " ~ columns ~ " columns" }}: nothing is missing.</p>
{% endif %}
{% if repeated %}
<p>{{ plural(repeated, "row") }} {{ "repeats" if repeated == 1 else "repeat" }} another row in every input and in the
outcome. {{ "It was" if repeated == 1 else "They were" }} kept: two patients may look alike. If a patient was entered
twice, correct the table before the next run.</p>
{% else %}
<p>No row repeats another in every input and in the outcome.</p>
{% endif %}

<h2>What left this site</h2>
{% if sent %}
{% set count, total = sent | sum(attribute="count"), sent | sum(attribute="total") %}
<p>{{ plural(count, "sealed update") }}, together {{ total | size }}. Each was encrypted here and masked, so that only
the sum over all sites taking part can be opened, by sites alone.</p>
<table>
  <thead><tr>
    <th>Kind of round</th><th class="number">Updates</th><th class="number">Each</th><th class="number">Together</th>
    <th class="number">Sites in the sum</th>
  </tr></thead>
  <tbody>
  {% for kind in sent %}
  {% set small, large = kind.sizes | min, kind.sizes | max %}
  {% set fewest_sites, most_sites = kind.cohorts | min, kind.cohorts | max %}
  <tr>
    <th>{{ kinds[kind.kind.name] }}<small>{{ contents[kind.kind.name] }}</small></th>
    <td class="number">{{ kind.count }}</td>
    <td class="number">{{ small | size }}{% if large != small %}<small>to {{ large | size }}</small>{% endif %}</td>
    <td class="number">{{ kind.total | size }}</td>
    <td class="number">{{ fewest_sites }}{% if most_sites != fewest_sites %} to {{ most_sites }}{% endif %}</td>
  </tr>
  {% endfor %}
  </tbody>
  <tfoot><tr>
    <th>All</th><td class="number">{{ count }}</td><td></td><td class="number">{{ total | size }}</td><td></td>
  </tr></tfoot>
</table>
<p class="note">An update that was asked for again is sent as the same bytes and counted once. Besides, this site sent
its public keys and the agreement when the run opened, and a short signed note without data per round.</p>
{% else %}
<p>No sealed update of this run left this site.</p>
{% endif %}
{% if epsilon is not none %}
<div class="box">
  <h3>Noise</h3>
  <p>Each model update left with noise. Whatever anybody makes of all of them together, whether one patient was trained
  with changes its odds by a factor of at most e<sup>{{ "%.2f" | format(epsilon) }}</sup> (differential privacy,
  ε&nbsp;=&nbsp;{{ "%.2f" | format(epsilon) }} at δ&nbsp;=&nbsp;{{ "%g" | format(delta) }}). This is about the model
  updates, given the statistics: the sums that inputs are standardised with are exact.</p>
</div>
{% endif %}
<div class="box">
  <h3>What others could see of it</h3>
  <p>The provider that carried the messages saw their sizes and times, which sites took part, and ciphertexts that it
  cannot open: no record, no count of patients, no measure, no model. The other sites saw sums over all sites taking
  part. This holds as long as no
  {%- if colluders %} more than {{ plural(colluders, "site") }} work{{ "s" if colluders == 1 }}
  {%- else %} site works{% endif %} together with the provider; training times may hint at the number of patients.</p>
</div>
{% endblock %}

{% block foot %}
<p>For the people of {{ site }} only: this page tells about its patients as a group. It is no medical device and no
ground to treat a patient.</p>
{% endblock %}
"""
