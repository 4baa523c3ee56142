// What to draw, for whoever has no idea.

export const IDEAS = [
  "birthday cake", "rocket", "red apple", "sunflower", "cat face", "pizza", "sailboat", "snowflake", "red heart", "soccer ball",
  "smiling face with sunglasses", "thumbs up: medium skin tone", "flag: Norway", "waving hand: dark skin tone", "cactus", "octopus",
  "hot beverage", "rainbow", "green salad", "dog face", "full moon", "guitar", "butterfly", "watermelon", "ghost", "bicycle", "tulip", "owl",
];

/** `count` of them, in a new order each time. */
export function some(count) {
  const left = [...IDEAS];
  return Array.from({ length: Math.min(count, left.length) }, () => left.splice(Math.floor(Math.random() * left.length), 1)[0]);
}
