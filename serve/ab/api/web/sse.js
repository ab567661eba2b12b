// Server-sent events out of a fetch body, cut anywhere, in the middle of a character too.

const LONGEST_LINE = 4_000_000;

export async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      rest += value;
      const lines = rest.split(/\r\n|\n|\r(?!$)/); // a CR at the very end may be half of a CRLF
      rest = lines.pop();
      if (rest.length > LONGEST_LINE) throw new Error("the server sent a line without an end");
      for (const line of lines) {
        if (line === "") {
          if (data.length) yield data.join("\n");
          data = [];
        } else if (line === "data" || line.startsWith("data:")) {
          data.push(line.slice(5).replace(/^ /, ""));
        }
      }
    }
    if (rest.startsWith("data:")) data.push(rest.slice(5).trim());
    if (data.length) yield data.join("\n"); // an end without the blank line: the last event still counts
  } finally {
    await reader.cancel().catch(() => {});
  }
}
