// What the handler finds out, without WebAssembly: this is what the tests test.

// Each once: ids are unique.
export function devicesOf(names) {
  return [...new Set(names.map(String))].sort();
}
