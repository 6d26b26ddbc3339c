"""The director: a language model that writes a narrative step by step, each as action, caption and visual embedding z.

config      what it is made of                             inputs  narratives as sequences, packed into batches
attention   which tokens of a batch see which              model   the network and what it sums
head        from hidden states to z: regression, mixture   loss    eq. 3 of VideoAuteur, eq. 4 and 9 of MovieDreamer
weights     where language models come from; checkpoints   cost    operations and memory of an update
task        what the training loop asks of a model         sample  writing a narrative
storyboard  what was written, as JSON, arrays and a page
"""
