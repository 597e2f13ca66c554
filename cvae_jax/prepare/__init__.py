"""Any video of one person made into a data set: prepare.py is the door."""
