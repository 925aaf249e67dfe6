/**
 * Difference: which entries two lists have in common, in order.
 * @module
 */

/** Lists of more entries in the middle are compared place by place: the table has their product. */
const LARGEST_TABLE = 4_000_000;

/**
 * For each entry of both lists, whether the other has it too, by a longest common subsequence.
 * @param {string[]} one
 * @param {string[]} other
 * @returns {[boolean[], boolean[]]}
 */
export function inCommon(one, other) {
  let start = 0;
  while (start < one.length && start < other.length && one[start] === other[start]) start += 1;
  const found = /** @type {[boolean[], boolean[]]} */ ([one, other].map((list) => list.map((_, at) => at < start)));
  const [rows, columns] = [one.slice(start), other.slice(start)];
  if (rows.length * columns.length > LARGEST_TABLE) return found;
  const width = columns.length + 1;
  const lengths = new Uint32Array((rows.length + 1) * width);
  for (let row = rows.length - 1; row >= 0; row -= 1) {
    for (let column = columns.length - 1; column >= 0; column -= 1) {
      const at = row * width + column;
      lengths[at] =
        rows[row] === columns[column] ? lengths[at + width + 1] + 1 : Math.max(lengths[at + width], lengths[at + 1]);
    }
  }
  let [row, column] = [0, 0];
  while (row < rows.length && column < columns.length) {
    const at = row * width + column;
    if (rows[row] === columns[column]) {
      found[0][start + row] = found[1][start + column] = true;
      row += 1;
      column += 1;
    } else if (lengths[at + width] >= lengths[at + 1]) row += 1;
    else column += 1;
  }
  return found;
}
