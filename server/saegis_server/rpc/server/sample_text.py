"""The built-in text on which SAEs are checked at load: ordinary prose in several languages, and code."""

SAMPLE_TEXT = """\
The river rises in the hills above the town and runs for forty miles before it reaches the sea. In
spring, when the snow melts, it floods the meadows on both sides, and the farmers move their cattle to
higher ground. There has been a bridge here since the twelfth century. The present one was built of grey
stone in 1784, after the old one had been carried away by ice, and it still bears the traffic of the
road between the two market towns.

"How long have you lived here?" she asked him. "All my life," he said, "and my father before me. He kept
the mill until it closed. After that he worked on the railway." They walked on without speaking. It had
begun to rain, and the lamps along the street were already lit although it was not yet five o'clock.

Researchers at the university reported on Tuesday that the new method reduces the energy needed by about
a third. The study followed 1,248 patients over six years; those who exercised at least three times a
week had a lower risk of heart disease (p < 0.01). The authors warn, however, that the sample was small
and that more work is needed.

To make the dough, mix 500 g of flour with a teaspoon of salt, add 320 ml of warm water and a little
yeast, and knead it for ten minutes. Let it rest under a damp cloth until it has doubled in size. Bake
at 230 degrees for thirty-five minutes. Let the bread cool on a rack before you cut it.

Der Zug nach Hamburg hatte an diesem Morgen zwanzig Minuten Verspätung, und auf dem Bahnsteig standen viele
Leute.
La casa de mi abuela estaba al final del pueblo, cerca de un huerto donde crecían naranjos y limoneros.
Le musée est ouvert tous les jours sauf le lundi; l'entrée est gratuite le premier dimanche du mois.
Вечером мы сидели на берегу и смотрели, как солнце медленно садится за дальний лес.

def mean(values):
    if not values:
        raise ValueError("no values")
    return sum(values) / len(values)

The committee will meet again on the ninth of March to decide whether the proposal should be put to a
vote. Until then, members may send their comments to the secretary. Questions about the budget should be
addressed to the treasurer, who will answer them in writing before the end of the month.
"""
