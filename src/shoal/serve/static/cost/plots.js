// @ts-check
// Two plots by uPlot, which this page alone loads. A table or a text beside each says the same.
import { compact, language, number, t } from "../i18n.js";
import { html, useEffect, useRef } from "../lib.js";

/** @type {Promise<any> | undefined} */
let library;
/** @returns {Promise<any>} */
function loadPlots() {
  // @ts-ignore a classic script: it sets globalThis.uPlot
  library ??= import("../vendor/uplot-1.6.32/uPlot.iife.min.js").then(() => globalThis.uPlot);
  return library;
}

/** The colour that a class of cost.css stands for here and now. @param {HTMLElement} place @param {string} name */
function colour(place, name) {
  const probe = document.createElement("i");
  probe.className = name;
  place.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

/**
 * A plot as wide as its place, drawn anew when its data, its width or the colour scheme change.
 * @param {{label: string, height?: number, make: (uPlot: any, tone: (name: string) => string) => {options: any, data: any}, data: any}} props
 */
function Plot({ label, height = 260, make, data }) {
  const place = useRef(/** @type {HTMLElement | null} */ (null));
  useEffect(() => {
    const node = /** @type {HTMLElement} */ (place.current);
    let plot = /** @type {any} */ (null);
    let ended = false;
    const draw = async () => {
      const uPlot = await loadPlots();
      if (ended) return;
      plot?.destroy();
      const made = make(uPlot, (name) => colour(node, name));
      plot = new uPlot({ width: node.clientWidth, height, legend: { show: false }, cursor: { drag: { x: false, y: false } },
        ...made.options }, made.data, node);
    };
    const sizes = new ResizeObserver(() => plot?.width !== node.clientWidth && draw());
    sizes.observe(node);
    const scheme = matchMedia("(prefers-color-scheme: dark)");
    scheme.addEventListener("change", draw);
    draw();
    return () => {
      ended = true;
      sizes.disconnect();
      scheme.removeEventListener("change", draw);
      plot?.destroy();
    };
  }, [data]);
  return html`<div class="plot" role="img" aria-label=${label} ref=${place}></div>`;
}

/** $10M: an axis has no room for zeros. @param {number} value @param {string} currency */
const shortMoney = (value, currency) => new Intl.NumberFormat(language, { style: "currency", currency, notation: "compact",
  currencyDisplay: "narrowSymbol", maximumSignificantDigits: 3 }).format(value);

const wide = (/** @type {any} */ _, /** @type {number} */ low, /** @type {number} */ high) =>
  [10 ** Math.floor(Math.log10(low) - 0.05), 10 ** Math.ceil(Math.log10(high) + 0.05)];

/** One number in a few letters, the powers of ten alone. @param {(value: number) => string} show */
const powers = (show) => (/** @type {any} */ _, /** @type {(number | null)[]} */ values) =>
  values.map((value) => (value !== null && Math.abs(Math.log10(value) % 1) < 1e-9 ? show(value) : ""));

/** Hours, with their range, and money over the number of devices. @param {any} props */
export function ScanPlot({ points, serving, rate, currency }) {
  const counts = points.map((/** @type {any} */ p) => p.count);
  const column = (/** @type {string} */ key, by = 1) =>
    points.map((/** @type {any} */ p) => (p[key] === null ? null : p[key] * by));
  const make = (/** @type {any} */ uPlot, /** @type {any} */ tone) => {
    const axis = { stroke: tone("inkText"), grid: { stroke: tone("inkLine"), width: 1 }, ticks: { show: false } };
    const band = { stroke: tone("tone0"), width: 0.5, scale: "h", points: { show: false } };
    const hours = { ...axis, scale: "h", size: 62, label: serving ? undefined : t("cost.hoursAxis"), values: powers((v) => compact(v)) };
    const sums = { ...axis, scale: "m", side: 1, size: 78, grid: { show: false }, stroke: tone("tone1"), values: powers((v) => shortMoney(v, currency)) };
    const lines = serving ? [] : [{ ...band, width: 2 }, band, band];
    return {
      options: {
        scales: { x: { time: false, distr: 3, log: 2 }, h: { distr: 3, range: wide }, m: { distr: 3, range: wide } },
        axes: [{ ...axis, label: t("cost.count"), values: (/** @type {any} */ _, /** @type {any[]} */ v) => v.map((n) => n === null ? "" : number(n)) },
          ...(serving ? [] : [hours]), sums],
        series: [{}, ...lines, { stroke: tone("tone1"), width: 2, dash: [6, 4], scale: "m", points: { show: false } }],
        bands: serving ? [] : [{ series: [3, 2], fill: tone("tone0").replace(/rgb\((.*)\)/, "rgba($1, .12)") }],
      },
      data: [counts, ...(serving ? [] : [column("hours"), column("hours_low"), column("hours_high")]), column("usd", rate)],
    };
  };
  return html`<${Plot} label=${t("cost.scanAbout")} make=${make} data=${points} /><p class="soft">${t("cost.scanAbout")}</p>`;
}

/** Time on each device, or devices of a service: bars on a scale of tens. @param {any} props */
export function ComparePlot({ rows, serving }) {
  const make = (/** @type {any} */ uPlot, /** @type {any} */ tone) => {
    const axis = { stroke: tone("inkText"), ticks: { show: false } };
    const names = rows.map((/** @type {any} */ row) => row.name.replace(/\s*[(,].*/, "").slice(0, 13));
    const high = { ...axis, scale: "y", size: 62, grid: { stroke: tone("inkLine"), width: 1 }, values: powers((v) => compact(v)) };
    return {
      options: {
        scales: { x: { time: false, range: [-0.6, rows.length - 0.4] }, y: { distr: 3, range: wide } },
        axes: [{ ...axis, rotate: -50, size: 96, grid: { show: false }, splits: () => names.map((/** @type {any} */ _, /** @type {number} */ i) => i),
          values: () => names }, { ...high, label: serving ? t("cost.deviceHoursAxis") : t("cost.hoursAxis") }],
        series: [{}, { scale: "y", fill: tone("tone0"), paths: uPlot.paths.bars({ size: [0.6, 48] }), points: { show: false } }],
      },
      data: [rows.map((/** @type {any} */ _, /** @type {number} */ i) => i), rows.map((/** @type {any} */ row) => (serving ? row.device_hours : row.hours))],
    };
  };
  return rows.length ? html`<${Plot} label=${t("cost.others")} height=${320} make=${make} data=${rows} />` : null;
}
