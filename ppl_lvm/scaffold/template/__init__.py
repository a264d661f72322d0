"""Files that `ppl-lvm new` copies.

The new name replaces `Template` and `template`. The modules model, guide and test_model are a new
pair; default_guide and test_copy accompany a copied model.
"""
