// Figures as people read them: three digits that mean something, and a dash where there is none.

export const NONE = "–";

export function digits(value) {
  return rounded(value).replace("-", "−");
}

function rounded(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return NONE;
  const size = Math.abs(value);
  if (size >= 1000) return value.toLocaleString("en", { maximumFractionDigits: 0 });
  if (size >= 100) return value.toFixed(0);
  if (size >= 10) return value.toFixed(1);
  if (size >= 1 || size === 0) return value.toFixed(2).replace(/\.00$/, "");
  return Number(value.toPrecision(2)).toString();
}

export const axis = (value) => value.toLocaleString("en", { notation: "compact", maximumSignificantDigits: 3 });

export const percent = (share, places = 1) =>
  share === null || share === undefined ? NONE : `${Number((share * 100).toFixed(places))} %`;

export function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  let value = count;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${digits(value)} ${units[unit]}`;
}

export const count = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
