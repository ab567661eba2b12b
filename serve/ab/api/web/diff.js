// Which words of two answers differ: the longest common subsequence of their words.

const MOST_CELLS = 9_000_000;

// Words keep the white space before them, so that the pieces joined are the text again.
export const words = (text) => text.match(/\s*[\p{L}\p{N}_'’-]+|\s*[^\s\p{L}\p{N}_'’-]|\s+$/gu) ?? [];

// -> { left, right: [{ text, same }], same, total }: spans in order; `same` of `total` words, of the longer answer's.
export function diff(leftText, rightText) {
  const left = words(leftText);
  const right = words(rightText);
  const [leftSame, rightSame] = common(left.map((word) => word.trim()), right.map((word) => word.trim()));
  return {
    left: spans(left, leftSame),
    right: spans(right, rightSame),
    same: leftSame.reduce((sum, same) => sum + same, 0),
    total: Math.max(left.length, right.length),
  };
}

function common(left, right) {
  const leftSame = new Uint8Array(left.length);
  const rightSame = new Uint8Array(right.length);
  let start = 0;
  while (start < left.length && start < right.length && left[start] === right[start]) {
    leftSame[start] = rightSame[start] = 1;
    start += 1;
  }
  let leftEnd = left.length;
  let rightEnd = right.length;
  while (leftEnd > start && rightEnd > start && left[leftEnd - 1] === right[rightEnd - 1]) {
    leftEnd -= 1;
    rightEnd -= 1;
    leftSame[leftEnd] = rightSame[rightEnd] = 1;
  }
  const rows = leftEnd - start;
  const columns = rightEnd - start;
  if (rows === 0 || columns === 0 || rows * columns > MOST_CELLS) return [leftSame, rightSame];
  const width = columns + 1;
  const length = new Uint16Array((rows + 1) * width); // of the LCS of what follows (row, column)
  for (let row = rows - 1; row >= 0; row -= 1) {
    for (let column = columns - 1; column >= 0; column -= 1) {
      const at = row * width + column;
      length[at] =
        left[start + row] === right[start + column]
          ? length[at + width + 1] + 1
          : Math.max(length[at + width], length[at + 1]);
    }
  }
  for (let row = 0, column = 0; row < rows && column < columns; ) {
    const at = row * width + column;
    if (left[start + row] === right[start + column]) {
      leftSame[start + row] = rightSame[start + column] = 1;
      row += 1;
      column += 1;
    } else if (length[at + width] >= length[at + 1]) row += 1;
    else column += 1;
  }
  return [leftSame, rightSame];
}

// White space before a word that differs is no difference: it belongs to the span before it.
function spans(list, same) {
  const found = [];
  const add = (text, isSame) => {
    const last = found.at(-1);
    if (text === "") return;
    if (last && last.same === isSame) last.text += text;
    else found.push({ text, same: isSame });
  };
  list.forEach((word, index) => {
    const core = word.trimStart();
    if (same[index] || core === "") return add(word, Boolean(same[index]) || core === "");
    const space = word.slice(0, word.length - core.length);
    add(space, found.at(-1)?.same ?? true);
    return add(core, false);
  });
  return found;
}
