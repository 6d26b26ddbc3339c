"""The director: a language model that writes a narrative step by step, each as action, caption and visual embedding z.

config   what it is made of, and the presets       inputs   narratives as sequences, packed into batches
model    the network and its losses                head     from hidden states to z: regression, or a mixture
loss     eq. 3 of VideoAuteur                      weights  where language models come from; checkpoints
sample   writing a narrative                       storyboard  what was written, as JSON, arrays and a page
"""
