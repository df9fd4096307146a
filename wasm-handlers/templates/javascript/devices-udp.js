// What the handler finds out, without WebAssembly: this is what the tests test.

// A device for each address that has answered, and where it is: the newest answer counts.
export function devicesOf(answers) {
  return new Map(answers.map(({ from }) => [from.slice(0, from.lastIndexOf(":")), from]));
}
