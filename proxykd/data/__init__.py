"""The corpus: prompts in, quality verdicts, splits, chat rendering, token ids.

    prompts      JSONL -> PromptSet, each message naming the line
    quality      pure measures of one text: refusal, length, word shingles, MinHash
    duplicates   exact and near duplicates and overlap over a whole corpus, on disk
    judging      prompts + completions -> rows with a verdict each
    splits       the side on which a prompt falls, by the hash of its id
    chat         messages -> text
    tokenizing   rows -> token ids in a memory-mapped file

Everything here streams: memory does not grow with the number of rows.
"""
