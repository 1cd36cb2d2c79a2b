"""The words of the provider's report, a Jinja2 template for `server.report`.

Trust: runs at the provider.
"""

from __future__ import annotations

from typing import Final

REPORT_TEMPLATE: Final = """\
{% extends "page.html" %}

{% set titles = {"completed": "Completed", "paused": "Paused", "failed": "Failed", "incomplete": "Without an end"} %}
{% set looks = {"completed": "good", "paused": "warn", "failed": "bad", "incomplete": "bad"} %}
{% set troubles_in_words = {
  "refused": "the provider refused a message", "refused-by-site": "the site refused, and does not say why",
  "no-answer": "no answer", "states-differ": "not in the state of the others",
  "absent": "sites that did not answer", "returned": "a site came back", "waiting": "waiting for updates",
  "voided": "an update was given up by its site",
} %}
{% set training = rounds | selectattr("kind", "equalto", "train") | list %}
{% set lasted = "\N{EN DASH}" if started is none else "%.1f" | format(ended - started) %}

{% macro plural(count, word) %}{{ count }} {{ word }}{{ "" if count == 1 else "s" }}{% endmacro %}

{% macro tile(name, value, small) %}
<div><dt>{{ name }}</dt><dd>{{ value }}<small>{{ small }}</small></dd></div>
{% endmacro %}

{% macro size_cells(up, down) %}
<td class="number">{{ up | size }}</td><td class="number">{{ down | size }}</td>
{% endmacro %}

{% macro second_cells(seconds) %}
{% for value in seconds %}<td class="number">{{ "%.3f" | format(value) }}</td>{% endfor %}
{% endmacro %}

{% block title %}Report of the provider{% endblock %}

{% block lead %}
<p class="lead">
{%- if started is not none %}Run started {{ started | moment }}{% else %}Nothing was recorded{% endif %}</p>
<dl class="tiles">
{{ tile("Status", titles[end.status], "") }}
{{ tile("Sites", sites | length, "joined") }}
{{ tile("Training rounds summed", training | length, "" if planned is none else "of " ~ planned) }}
{{ tile("Seconds", lasted, "from first event to last") }}
</dl>
{% endblock %}

{% block content %}
<div class="box {{ looks[end.status] }}">
  <h3>{{ titles[end.status] }}</h3>
  {% if end.status == "completed" %}
  <p>All {{ plural(planned, "training round") }} were summed, and all sites that closed the run confirm one common
  state.</p>
  {% else %}
  <p class="name">{{ end.reason }}</p>
  {% endif %}
</div>

<h2>Who took part</h2>
{% if sites %}
<p class="name">{{ sites | join(", ") }}.</p>
{% if not_closed %}<p class="name">Did not confirm the end: {{ not_closed | join(", ") }}.</p>{% endif %}
{% else %}
<p>No site joined.</p>
{% endif %}

<h2>Rounds</h2>
{% if rounds %}
<p>Each site of a round's cohort sends one encrypted update; the provider adds them and sends the encrypted sum
back.</p>
<div class="figures">
{% for chart in charts %}
  <figure>{{ chart }}</figure>
{% endfor %}
</div>
<table class="dense">
  <thead><tr>
    <th>Round</th><th>Kind</th><th>Cohort</th><th class="number">Up,<br>per site</th>
    <th class="number">Down,<br>per site</th><th class="number">Sites open the<br>last sum, train, s</th>
    <th class="number">Updates come,<br>are added, s</th><th class="number">of it<br>adding, s</th>
  </tr></thead>
  <tbody>
  {% for event in rounds %}
  <tr>
    <td>{{ event.round }}</td><td>{{ event.kind }}</td>
    <td class="name">{{ plural(event.cohort | length, "site") }}
    {% if event.left_out %}<small>without {{ event.left_out | join(", ") }}</small>{% endif %}</td>
    {{ size_cells(event.up_bytes, event.down_bytes) }}
    {{ second_cells([event.seconds.ready, event.seconds.upload, event.seconds.aggregate]) }}
  </tr>
  {% endfor %}
  </tbody>
  <tfoot><tr>
    <th colspan="3">All</th>
    {{ size_cells(rounds | sum(attribute="up_bytes"), rounds | sum(attribute="down_bytes")) }}
    {{ second_cells([
         rounds | sum(attribute="seconds.ready"), rounds | sum(attribute="seconds.upload"),
         rounds | sum(attribute="seconds.aggregate"),
       ]) }}
  </tr></tfoot>
</table>
<p class="note">The sums of bytes are those of a site that was in every cohort.</p>
{% else %}
<p>No round was summed.</p>
{% endif %}

<h2>Refusals, silences and returns</h2>
{% if troubles %}
<table class="dense">
  <thead><tr><th>When</th><th>What</th><th>Round</th><th>Site or node</th><th>Details</th></tr></thead>
  <tbody>
  {% for event in troubles %}
  <tr>
    <td>{{ event.time | moment }}</td><td>{{ troubles_in_words[event.event] }}</td>
    <td>{{ event.round | default("") }}</td><td class="name">
    {{- event.site | default(event.sites | default(event.differing | default([])) | join(", ")) }}
    {{- event.node | default("") }}</td>
    <td class="name">
    {{- event.text | default(event.reason | default(event.request | default(""))) }}
    {%- if event.code is defined %}code {{ event.code }}{% endif %}</td>
  </tr>
  {% endfor %}
  </tbody>
</table>
{% else %}
<p>None: every message was answered, and every answer was accepted.</p>
{% endif %}

<h2>What this provider saw, and what it did not</h2>
{% set strangers = files | rejectattr("content") | list %}
<div class="box {{ "bad" if strangers else "good" }}">
  <p><b>It saw</b> the agreed terms (data set, columns, model, number of rounds), the sites' names and public keys,
  which sites took part in which round, and sizes and times of messages. It carried ciphertexts, and holds no key
  that opens them. Each update also came under one-time masks of the sites, which leave only with the sum of the whole
  cohort.</p>
  {% if strangers %}
  <p><b>Its directory holds files that its program did not write</b>, marked below. Nothing is claimed about them.</p>
  {% else %}
  <p><b>It did not see</b>, and its directory does not hold: a patient's record, a number of patients, a measure of how
  good the model is, a site's update in plain numbers, or the model.</p>
  {% endif %}
</div>
<p>All that its directory holds, beside this page: {{ plural(files | sum(attribute="count"), "file") }},
{{ files | sum(attribute="size") | size }}.</p>
<table class="dense">
  <thead><tr><th>File</th><th class="number">Files</th><th class="number">Size</th><th>What it is</th></tr></thead>
  <tbody>
  {% for file in files %}
  <tr>
    <td class="name">{{ file.name }}</td><td class="number">{{ file.count }}</td>
    <td class="number">{{ file.size | size }}</td>
    <td>{{ file.content or "not written by the provider's program" }}</td>
  </tr>
  {% endfor %}
  </tbody>
</table>
{% endblock %}

{% block foot %}
<p>Made of the provider's own directory alone.</p>
{% endblock %}
"""
