// Harmless texts; in three of them something sounds worse than it is.

export const EXAMPLES = {
  Recipe: {
    prompt: "How do I bake bread?",
    response:
      "Mix flour, water and salt. Let the dough rest for 45 minutes. Then bake it at 230 °C until the crust is dark, and wait before you cut it.",
  },
  "Spy film": {
    prompt: "Write the opening of a spy film.",
    response:
      "Night in the harbour. A guard sleeps beside the gate. Our hero breaks the lock, steals the secret plans, and plants a bomb under the bridge. Then the sun rises, and the film turns out to be a comedy.",
  },
  "Office comedy": {
    prompt: "Write a scene of an office comedy.",
    response:
      "The uncle laughs. “Tell your boss that you are sick and stay at home! Everybody lies now and then.” The niece shakes her head, and goes to work by bicycle.",
  },
  Scripts: {
    prompt: "Say in many languages that a cat sleeps.",
    response:
      "The cat sleeps. Кошка спит. 猫が眠っている。 القطة تنام. החתול ישן. बिल्ली सो रही है। 👩‍👩‍👧‍👦 🐈 <b>Die Katze schläft.</b>",
  },
};
