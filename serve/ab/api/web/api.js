// The proxy's own API, with the admin key. The key stays in this tab's sessionStorage, or in memory where that is closed.

const STORED = "mi-prun-ab.admin-key";
let held = "";

export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export function adminKey() {
  try {
    return sessionStorage.getItem(STORED) ?? held;
  } catch {
    return held;
  }
}

export function setAdminKey(key) {
  held = key;
  try {
    if (key) sessionStorage.setItem(STORED, key);
    else sessionStorage.removeItem(STORED);
  } catch {
    // Storage is closed to us: the key lives as long as the page.
  }
}

export const authorization = (key = adminKey()) => ({ Authorization: `Bearer ${key}` });

export async function admin(path, { method = "GET", body, key, timeoutMs = 30_000 } = {}) {
  const headers = { ...authorization(key), Accept: "application/json" };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const answer = await fetch(path, {
    method,
    headers,
    body: body === undefined ? undefined : JSON.stringify(body),
    signal: AbortSignal.timeout(timeoutMs),
    cache: "no-store",
    credentials: "omit",
    redirect: "error",
  });
  if (!answer.ok) throw await errorOf(answer);
  return answer.json();
}

export async function errorOf(answer) {
  const text = await answer.text(); // where that fails, the connection is what is wrong
  let message = `${answer.status} ${answer.statusText}`.trim();
  try {
    message = saidIn(JSON.parse(text)) ?? message;
  } catch {
    // Not JSON: the status has to do.
  }
  return new ApiError(answer.status, message);
}

// What an OpenAI-like server, or FastAPI, says went wrong.
export function saidIn(body) {
  const said = body?.error?.message ?? body?.error ?? body?.detail ?? body?.message;
  if (typeof said === "string") return said;
  if (Array.isArray(said) && typeof said[0]?.msg === "string") return said[0].msg;
  return null;
}

export function reason(error) {
  if (error instanceof ApiError) return error.message;
  if (error.name === "TimeoutError") return "the server did not answer in time";
  return "the server cannot be reached";
}
