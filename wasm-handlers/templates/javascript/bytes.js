// What the interfaces of WASI take and give.

// The text of pieces of bytes, UTF-8.
export function textOf(pieces) {
  let encoded = "";
  for (const piece of pieces) {
    for (const byte of piece) encoded += `%${byte.toString(16).padStart(2, "0")}`;
  }
  try {
    return decodeURIComponent(encoded);
  } catch {
    throw new Error("it is no text");
  }
}

export function bytesOf(text) {
  const encoded = encodeURIComponent(text).replace(/%([0-9A-F]{2})/g, (_, digits) => String.fromCharCode(parseInt(digits, 16)));
  return Uint8Array.from(encoded, (letter) => letter.charCodeAt(0));
}

// The word that says why a call failed.
export function why(error) {
  const payload = error?.payload ?? error;
  return payload?.tag ?? (typeof payload === "string" ? payload : payload?.message ?? String(payload));
}
