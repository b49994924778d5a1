"""Equal-Info Windows: text as words of equally many bits, each a window that a small model of bytes has compressed.

A model whose tables are whole numbers, a range coder that starts anew with each window, and the rule by which a window
ends. All of it is integer arithmetic, so that what one machine encodes every other one decodes, bit by bit.

Source: Training LLMs over Neurally Compressed Text, arXiv:2404.03626; its authors published no code.
"""
