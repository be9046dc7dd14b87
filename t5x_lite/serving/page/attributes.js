// "1995 · Comedy" of an item's attributes.
export function described(attributes) {
  return Object.values(attributes).flat().join(" · ");
}
