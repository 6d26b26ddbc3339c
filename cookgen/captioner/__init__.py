"""The captioner: LLaVA-NeXT or LLaVA-NeXT-Video, tuned on captions; cookgen.perception.caption_models runs what comes
of it.

captions   caption sets: JSON Lines, and the clips of shard sets
inputs     a clip and its caption as tokens and pixels, and batches of them
model      the network with its loss, and what of it is trained
task       what the loop of cookgen.training asks for
export     a checkpoint as a folder that transformers and vLLM load
tiny       a random checkpoint of a few hundred thousand weights, to see all of this work

Source: VideoAuteur, section 3.2 (Captions).
"""
