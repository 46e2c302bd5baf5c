/** From COCO run lengths to label maps. */

export const UNLABELLED = -1;

/**
 * Decodes COCO's compressed run lengths: every number is a string of 6-bit characters from "0" on, 5 bits of value
 * and a bit that says that more follow; from the fourth on they are differences from the number two places before.
 * Runs alternate between outside and inside, column by column.
 */
export function runLengths(counts) {
  const runs = [];
  let place = 0;
  while (place < counts.length) {
    let value = 0;
    let shift = 0;
    let more = true;
    while (more) {
      const bits = counts.charCodeAt(place++) - 48;
      value |= (bits & 0x1f) << shift;
      more = (bits & 0x20) !== 0;
      shift += 5;
      if (!more && (bits & 0x10) !== 0) value |= -1 << shift;
    }
    runs.push(runs.length > 2 ? value + runs[runs.length - 2] : value);
  }
  return runs;
}

/**
 * The label of every pixel, row by row: Int32Array of width * height, UNLABELLED where no concept lies.
 *
 * `concepts` as in the answer of /v1/segment: `label`, `rle: {size: [height, width], counts}`.
 */
export function labelMap(concepts, width, height) {
  const labels = new Int32Array(width * height).fill(UNLABELLED);
  for (const { label, rle } of concepts) {
    if (rle.size[0] !== height || rle.size[1] !== width) throw new Error(`the mask of label ${label} has another size`);
    let position = 0;
    let inside = false;
    for (const run of runLengths(rle.counts)) {
      if (inside) {
        for (let p = position; p < position + run; p++) labels[(p % height) * width + ((p / height) | 0)] = label;
      }
      position += run;
      inside = !inside;
    }
  }
  return labels;
}
