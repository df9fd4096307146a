// What the handler finds out, without WebAssembly: this is what the tests test.

// What is there, by what was told.
export class Known {
  #paths = new Set();

  tell(action, path) {
    if (action === "remove") this.#paths.delete(path);
    else this.#paths.add(path);
  }

  names() {
    return [...this.#paths].sort();
  }
}
