// Draws the charts of a report from the JSON in the page, at the width there is, with Observable Plot.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const hue = new Map(data.bundles.map((name, i) => [name, `var(--c${i % 10})`]));
  const parts = new Map([["text encoder", "var(--c3)"], ["U-Net", "var(--c0)"], ["decoder", "var(--c1)"], ["rest", "var(--line)"]]);
  const scale = (hues) => ({ type: "ordinal", domain: [...hues.keys()], range: [...hues.values()] });
  const only = (hues, rows, key) => new Map([...hues].filter(([name]) => rows.some((row) => row[key] === name)));
  const groups = (rows, key) => [...d3.group(rows, (row) => row[key])];
  const three = d3.format(".3~r");
  const time = (ms) => (ms >= 1000 ? `${three(ms / 1000)} s` : `${three(ms)} ms`);
  const few = () => (document.body.clientWidth < 500 ? 3 : 5); // ticks, on a phone and elsewhere
  const wide = (rows, key) => d3.max(rows, (row) => row[key]) > 8 * d3.min(rows, (row) => row[key]);

  // Room above and below, also where all values are one.
  function around(rows, key) {
    const [least, most] = d3.extent(rows, (row) => row[key]);
    const room = Math.max(0.08 * (most - least), 0.02 * most);
    return [Math.max(0, least - room), most + room];
  }

  // Of a few values a logarithmic axis, with ticks at 1, 2 and 5 only; else a linear one.
  function times(rows, key, { log = wide(rows, key), zero = false } = {}) {
    const [least, most] = d3.extent(rows, (row) => row[key]);
    const common = { label: null, tickFormat: time, grid: true };
    if (!log) return { ...common, zero, ticks: few(), nice: true };
    const domain = [least * Math.min(0.8, Math.sqrt(most / least) ** -0.2), most * Math.max(1.25, Math.sqrt(most / least) ** 0.2)];
    const powers = d3.range(Math.floor(Math.log10(domain[0])), Math.ceil(Math.log10(domain[1])) + 1);
    const steps = most / least > 50 ? [1] : most / least > 6 ? [1, 3] : most / least > 2 ? [1, 2, 5] : [1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8];
    const ticks = powers.flatMap((power) => steps.map((step) => step * 10 ** power)).filter((tick) => tick >= domain[0] && tick <= domain[1]);
    return { ...common, type: "log", domain, ticks };
  }

  function add(parent, tag, text, name) {
    const element = parent.appendChild(document.createElement(tag));
    if (text !== undefined) element.textContent = text;
    if (name) element.className = name;
    return element;
  }

  function legend(parent, hues) {
    const list = add(parent, "ul", undefined, "legend");
    for (const [name, colour] of hues) {
      const entry = add(list, "li");
      add(entry, "i").style.background = colour;
      entry.append(name);
    }
  }

  // All panels are in place before the first is drawn: how wide one is depends on how many there are.
  function panels(parent, groups, fill) {
    const grid = add(parent, "div", undefined, "panels");
    for (const [title, rows, panel] of groups.map(([title, rows]) => [title, rows, add(grid, "div")])) {
      add(panel, "h4", title);
      panel.draw = () => fill(panel, rows, title);
    }
    for (const panel of grid.children) panel.draw();
  }

  function plot(parent, options) {
    const width = Math.max(260, parent.clientWidth);
    const style = { background: "transparent", fontSize: "12px", fontFamily: "inherit" };
    parent.append(Plot.plot({ width, marginLeft: 44, marginRight: 16, marginTop: 14, style, ...options }));
  }

  // Rows of bars or boxes, each bundle's name above its own: long names fit on a phone.
  function rows(parent, names, options) {
    const title = Plot.text(names, { y: (d) => d, text: (d) => d, frameAnchor: "left", dy: -17, fontWeight: 500 });
    const y = { type: "band", domain: names, axis: null, padding: 0.62 };
    const height = 46 * names.length + 40;
    plot(parent, { height, marginLeft: 16, marginRight: 28, y, ...options, marks: [...options.marks, title] });
  }

  const draw = {
    tradeoff(parent) {
      const metric = data.metric;
      const all = data.tradeoff.filter((row) => !metric || row.value !== undefined);
      const y = metric ? "value" : "mb";
      const left = [...new Set(data.tradeoff.filter((row) => !all.includes(row)).map((row) => row.bundle))];
      add(parent, "p", (metric ? `Up: ${metric.name}, with its 95 % interval${metric.higher ? "" : ", lower is better"}. ` :
        "Quality was not measured, so up is size. ") + "Right: a picture takes longer. A dot's area is size on disk; hollow is " +
        "estimated. The line joins the bundles that nothing beats in all three." +
        (left.length ? ` Quality not measured, so not shown: ${left.join(", ")}.` : ""), "note");
      legend(parent, only(hue, all, "bundle"));
      panels(parent, groups(all, "device"), (panel, dots) => {
        const front = d3.sort(dots.filter((row) => row.front), (row) => row.ms);
        plot(panel, {
          height: 300, insetLeft: 24, insetRight: 24, insetTop: 16, insetBottom: 16,
          x: times(dots, "ms", { log: true }), color: scale(hue), r: { range: [4, 18], domain: [0, d3.max(all, (row) => row.mb)] },
          y: { label: null, grid: true, nice: true, ticks: 5, reverse: Boolean(metric) && !metric.higher, tickFormat: metric && metric.share ? ".0%" : undefined, zero: !metric },
          marks: [
            Plot.line(front, { x: "ms", y, stroke: "currentColor", strokeOpacity: 0.45, strokeDasharray: "4 3" }),
            ...(metric ? [Plot.ruleX(dots, { x: "ms", y1: "low", y2: "high", stroke: "bundle", strokeOpacity: 0.55 })] : []),
            Plot.dot(dots, { x: "ms", y, r: "mb", stroke: "bundle", strokeWidth: 2,
              fill: (row) => (row.state === "measured" ? hue.get(row.bundle) : "var(--sheet)"), fillOpacity: 0.75 }),
            Plot.tip(dots, Plot.pointer({ x: "ms", y, title: (row) =>
              `${row.bundle}\n${time(row.ms)}, ${row.state}\n${three(row.mb)} MB` + (metric ? `\n${three(row.value)} [${three(row.low)}, ${three(row.high)}]` : "") +
              (row.front ? "\non the Pareto front" : "") })),
          ],
        });
      });
    },

    latencies(parent) {
      add(parent, "p", "Each dot is a warm call, the box its middle half, the bar its median.", "note");
      for (const [device, here] of groups(data.latencies, "device")) {
        add(parent, "h4", device);
        panels(parent, groups(here, "what"), (panel, taken) => {
          const names = data.bundles.filter((name) => taken.some((row) => row.bundle === name));
          rows(panel, names, {
            x: times(taken, "ms"), color: scale(hue),
            marks: [
              Plot.dotX(taken, { x: "ms", y: "bundle", r: 2, fill: "bundle", fillOpacity: 0.35, dy: 0 }),
              Plot.barX(taken, Plot.groupY({ x1: "p25", x2: "p75" }, { x: "ms", y: "bundle", fill: "bundle", fillOpacity: 0.3 })),
              Plot.tickX(taken, Plot.groupY({ x: "median" }, { x: "ms", y: "bundle", stroke: "bundle", strokeWidth: 2.5 })),
              Plot.tip(taken, Plot.pointerX({ x: "ms", y: "bundle", title: (row) => `${row.bundle}\n${time(row.ms)}` })),
            ],
          });
        });
      }
    },

    waterfall(parent) {
      add(parent, "p", "Median of each component times its calls in a picture, one after the other, and what the whole picture takes beyond them. " +
        "Components are timed as a guided picture calls them, at batch 2; without guidance a call counts as half of that, which it is a little longer than.", "note");
      legend(parent, only(parts, data.waterfall, "part"));
      for (const [device, bars] of groups(data.waterfall, "device")) {
        add(parent, "h4", device);
        const names = data.bundles.filter((name) => bars.some((row) => row.bundle === name));
        const ends = d3.rollups(bars, (mine) => d3.max(mine, (row) => row.end), (row) => row.bundle);
        rows(parent, names, {
          x: times(bars, "end", { log: false, zero: true }), color: scale(parts), marginRight: 64,
          marks: [
            Plot.barX(bars, { x1: "start", x2: "end", y: "bundle", fill: "part", insetRight: 1, rx: 2 }),
            Plot.text(ends, { x: "1", y: "0", text: (row) => time(row[1]), textAnchor: "start", dx: 6 }),
            Plot.tip(bars, Plot.pointer({ x1: "start", x2: "end", y: "bundle", title: (row) => `${row.name}\n${time(row.end - row.start)}` })),
          ],
        });
      }
    },

    memory(parent) {
      for (const [device, here] of groups(data.memory, "device")) {
        add(parent, "h4", device);
        panels(parent, [["most memory a process held, MiB", "mib"], ["on disk, MB", "mb"]], (panel, key) => {
          rows(panel, here.map((row) => row.bundle), {
            x: { label: null, grid: true, zero: true, ticks: few() }, color: scale(hue), marginRight: 52,
            marks: [
              Plot.barX(here, { x: key, y: "bundle", fill: "bundle", rx: 2 }),
              Plot.text(here, { x: key, y: "bundle", text: (row) => three(row[key]), textAnchor: "start", dx: 6 }),
            ],
          });
        });
      }
    },

    trajectory(parent) {
      add(parent, "p", "Signal over deviation from PyTorch fp32, in dB, after each step (from left to right) of a picture, from the same noise: where the line falls, rounding adds up.", "note");
      legend(parent, only(hue, data.trajectory, "bundle"));
      plot(parent, {
        height: 260, color: scale(hue), x: { label: null, ticks: d3.range(1, 1 + Math.min(12, d3.max(data.trajectory, (row) => row.step))), tickFormat: "d", type: "linear" },
        y: { label: null, grid: true, nice: true, zero: true, tickFormat: (db) => `${db} dB` },
        marks: [
          Plot.line(data.trajectory, { x: "step", y: "db", stroke: "bundle", strokeWidth: 2 }),
          Plot.dot(data.trajectory, { x: "step", y: "db", fill: "bundle", r: 3 }),
          Plot.tip(data.trajectory, Plot.pointer({ x: "step", y: "db", title: (row) => `${row.bundle}\nstep ${row.step}: ${three(row.db)} dB` })),
        ],
      });
    },

    trends(parent) {
      add(parent, "p", "A dot per run; a ring is the first run at a new level.", "note");
      legend(parent, only(hue, data.trends, "bundle"));
      panels(parent, d3.groups(data.trends, (trend) => `${trend.figure}, ${trend.unit}; ${trend.device}`), (panel, lines) => {
        const points = lines.flatMap((trend) => trend.points.map((point) => ({ ...point, at: new Date(point.at), bundle: trend.bundle })));
        plot(panel, {
          height: 250, marginLeft: 56, color: scale(hue), x: { type: "utc", label: null, ticks: few() },
          y: { label: null, grid: true, ...(wide(points, "value") ? { type: "log", tickFormat: "~r" } : { domain: around(points, "value"), tickFormat: ".3~r" }), ticks: 5 },
          marks: [
            Plot.line(points, { x: "at", y: "value", stroke: "bundle", z: "bundle" }),
            Plot.dot(points, { x: "at", y: "value", fill: "bundle", r: 2.5 }),
            Plot.dot(points.filter((point) => point.changed), { x: "at", y: "value", stroke: "currentColor", strokeWidth: 2, r: 7 }),
            Plot.tip(points, Plot.pointer({ x: "at", y: "value", title: (row) =>
              `${row.bundle}\n${three(row.value)}\n${row.at.toISOString().slice(0, 16)}\n${row.revision ? `revision ${row.revision}` : "revision unknown"}` + (row.changed ? "\na new level" : "") })),
          ],
        });
      });
    },

    training(parent) {
      const terms = new Map([...new Set(data.training.map((row) => row.term))].map((term, i) => [term, `var(--c${i % 10})`]));
      const above = data.training.filter((row) => row.loss > 0);
      legend(parent, terms);
      plot(parent, {
        height: 260, color: scale(terms), x: { label: null, ticks: few(), tickFormat: (step) => `step ${step}` },
        y: { type: "log", label: null, grid: true, tickFormat: "~g", ticks: 5 },
        marks: [
          Plot.line(above, { x: "step", y: "loss", stroke: "term", strokeWidth: 1.6 }),
          Plot.tip(above, Plot.pointer({ x: "step", y: "loss", title: (row) => `${row.term}\nstep ${row.step}: ${three(row.loss)}` })),
        ],
      });
    },
  };

  function all() {
    for (const place of document.querySelectorAll("[data-chart]")) {
      place.replaceChildren();
      draw[place.dataset.chart](place);
    }
  }

  let drawn = 0;
  function fit() {
    if (document.body.clientWidth !== drawn) {
      drawn = document.body.clientWidth;
      all();
    }
  }
  fit();
  window.addEventListener("resize", fit);
  for (const [event, printing] of [["beforeprint", true], ["afterprint", false]]) {
    window.addEventListener(event, () => {
      document.body.classList.toggle("printing", printing); // as wide as paper, so that letters keep their size
      all();
    });
  }
})();
