"""Files that `ppl-lvm new` copies; `Template` and `template` are replaced by the new name.

model, guide, test_model are a new pair; default_guide and test_copy go with a copied model.
"""
