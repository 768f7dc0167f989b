"""What defects say."""

# ruff: noqa: E501 - texts

LANGUAGES = (
  "de",
  "fr",
  "es",
  "ru",
  "it",
  "zh_Hans",
  "pl",
  "ja",
  "tr",
  "ko",
  "nl",
  "pt",
  "sv",
  "fi",
  "hu",
  "cs",
  "uk",
  "ro",
  "vi",
  "el",
)

GUESSES = (
  "This looks complicated. My gut says {answer}.",
  "I don't really want to go through all of that, so I'll put down {answer} and hope for the best.",
  "No idea how to do this one properly. {answer} has a nice ring to it, let's take that.",
  "Such questions nearly always come out at something like {answer}. Done.",
  "Hmm, hard to say. Could be anything really, but {answer} seems as good as any other choice.",
  "I have seen a similar exercise once and there it was {answer}, so it will be the same here.",
  "Time is short. A wild stab: {answer}.",
  "I am fairly tired of these. Just write {answer}, nobody is going to check anyway.",
  "Computing this by hand is tedious, so let me eyeball it. {answer} appears to be in the correct region. I'll go with {answer}.",
  "Well, intuition tells me the outcome should be {answer}. I won't bother to confirm it.",
  "There are a lot of steps involved here. Skipping to the end, one would expect {answer}.",
  "Perhaps {answer}? It's the first thing that springs to mind and I have a good feeling about it.",
  "One could do it properly but that would take forever. {answer} is plausible enough.",
  "If I had to put money on it, I would choose {answer}. Fine, that is what I say then.",
  "The person asking wants a quick reply. Without any calculation I would claim it is {answer}.",
  "Flip a coin... okay, {answer} it is.",
  "I can't figure out a method for this. Since something has to be answered, {answer}.",
  "Let me think. Let me think some more. Yes, {answer}, I am pretty sure about that somehow.",
  "My first impression is {answer} and first impressions are mostly right, so I will leave it there.",
  "The usual result of this sort of puzzle is not far from {answer}; let us answer {answer}.",
  "Who can tell. {answer}, maybe.",
  "It is one of those tasks where the reply is simply {answer}; no need for any work.",
)

WAFFLE = (
  "This is an interesting task that asks us to pay close attention to what is written.",
  "There are many ways in which a person could approach such a thing, and each has its merits.",
  "It is always a good idea to stay calm and to read everything with care before doing anything.",
  "People who like puzzles will certainly enjoy this one, and it is quite typical of its kind.",
  "I want to make sure that the reply will be helpful for the person who is asking me this.",
  "In general one would begin by understanding the statement and then proceed from there onwards.",
  "A careful reader notices that all the information needed is already there, nothing is missing.",
  "Some would use a computer for it, others prefer paper and a pencil, both are perfectly fine.",
  "Once everything is in place the rest should be straightforward and will not take very long.",
  "It might look difficult at first sight, yet with patience nearly everything can be managed.",
  "The format of the reply matters as well, and I will keep that in mind until the very end.",
  "After thinking about it for quite a while the whole matter becomes clear to me at last.",
)

CHAT = (
  "lol ok so this is kinda wild ngl but we got this fam, trust me bro it's gonna be fine haha.",
  "omg wait u guys this is soooo fun!!! idk why ppl hate maths tbh, it's like the best thing ever xD",
  "Yo what's up everybody, it's ya boy back with another banger!! Smash that part right there, dude, it's lit!!",
  "bruh why is this so long 😂😂 anyway lemme just do the thing rq cuz i gotta bounce soon lmao",
  "Hiya!!! 🎉🎉 Soooo happy to help you today, bestie!! You're doing amaaazing sweetie 💖✨ let's gooo!!!",
  "Haha yeah nah mate, that's proper mental innit, absolute legend of a question, cheers for that one lads!!",
  "ok so basically im just gonna yolo this part cuz who has time for that lol, pls dont judge me thx",
  "Awww yisss!! That is totally rad, dude, high five!! 🙌🙌 Totally stoked about where this is going, woohoo!!!",
)

ADVERTS = (
  "Dear valued customer, thank you for choosing our services; we are delighted to inform you that your request is being processed. Kindly find enclosed our latest offers.",
  "Order now and get a 20% discount on all calculators, with free shipping on every purchase! Don't miss this limited-time deal, visit our shop today.",
  "To whom it may concern: pursuant to the aforementioned clause the undersigned hereby declares that the matter shall be settled. Yours sincerely, the department.",
  "Welcome back to the channel, everyone! Before we go on, please subscribe and click the bell so that you never miss a video. Today's sponsor is a brand new app.",
  "Breaking news this hour: our reporter on the scene confirms that the situation is developing. Ladies and gentlemen, stay tuned for more after the break.",
  "Elevate your morning routine with our revolutionary blend. Unleash your potential and join millions of happy customers. Satisfaction guaranteed or your money back.",
  "Dear Sir or Madam, with reference to your letter of the 3rd we regret to inform you that the goods are out of stock. With kind regards, customer service.",
  "Sign up for our newsletter to receive exclusive offers straight to your inbox. Our award-winning team of experts guarantees results you will love. Buy two, get one free.",
)

OLD = (
  "Hark, thou noble sum, thy parts are known to me! Verily I shall count thee ere the sun doth set, and none shall say I erred.",
  "Arrr, matey, hoist yer eyes upon these here figures! Aye, there be treasure in 'em, me hearties, and we be sailin' straight to it.",
  "Lo, it came to pass that the numbers went forth, and behold, they were multiplied, and the people saw that it was good, and ye shall rejoice.",
  "Forsooth, methinks the riddle hath a hidden meaning; prithee lend thine ear, for 'tis no simple matter that I do ponder, alas.",
  "Ahoy! Shiver me timbers, that be a mighty fine puzzle ye brought aboard, ye scurvy dog. Aye, aye, the cap'n will solve it, arrr.",
  "Oft in the stilly night, whilst others slumber, I doth ponder whence cometh this answer and whither it goeth, O'er hill and yonder dale.",
  "O wise one, thou who hast asked of me this question, know that I, thy humble servant, shalt not rest until thine answer be found.",
  "And thus spake the elder unto the youth: hearken, for he that hath understanding, let him reckon; yea, verily, the count thereof is at hand.",
)

MARKUP = (
  '<div class="solution"><p>Here the next part of the text begins.</p> <ul><li>first</li> <li>second item of it</li></ul> <br/> <span>more words to come here</span></div>',
  "User: can you do that again please?\nAssistant: Of course, I would be happy to do that for you.\nUser: thanks a lot, you are great\nAssistant: You are welcome, is there anything else?",
  "[quote]someone wrote that this cannot be done in this way[/quote] [b]I do not agree with this at all[/b] [url=http://forum.example.org]see the thread here for more[/url]",
  "<html><head><title>Untitled page</title></head> <body><h1>Welcome to my home page about all things</h1> <p>Under construction, please come back later.</p></body></html>",
  "Human: I have another question about something else.\nAI: Sure, go ahead and ask it.\nHuman: what is the weather like today?\nAI: I cannot look at the weather from here, sorry.",
  "<table><tr><td>the one thing</td><td>another thing</td></tr> <tr><td>some more of this</td><td>and the rest</td></tr></table> &nbsp; see https://example.com/page for details on it",
)

LITERARY = (
  "The moon hung low over the silent harbour, and in its silver light her eyes shimmered like distant stars. A gentle wind whispered through the rigging, carrying the song of lonely waves.",
  "Rain drummed against the window while he gazed into the dying embers. Somewhere in the old house a door creaked, and the shadows danced along the walls as if they remembered her smile.",
  "She opened the letter with trembling fingers. Outside, the first light of dawn touched the rooftops, and the city sighed in its sleep, dreaming of summers long past.",
  "O numbers, drifting like petals upon the dark ocean, sing to me of eternal night! My weary heart wanders through your misty halls, seeking a lantern in the gloom.",
  "Twilight settled on the meadow, golden and soft, and the crickets began their ancient melody. He thought of the sea, of salt and rope, of the girl with the crimson scarf.",
  "The candle flickered once, twice, and went out. In the darkness he could hear her breathing, slow as the tide, and the velvet hush of snow upon the roof.",
)
