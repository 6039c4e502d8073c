"""The report for people: one HTML page and a short form in Markdown, both pure functions of data.

plots         where marks stand: axes, ticks, lines
views         arms, tasks, verdict and checks -> rows of the page
differences   paired differences -> rows of forest plots
facts         curves, fidelity, runs, lineage -> rows and plots
shown_text    what a model wrote -> text that hides nothing
rendering     all of it -> HTML
summary       all of it -> Markdown
"""
