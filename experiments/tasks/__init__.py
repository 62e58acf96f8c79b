"""What is learnt: the rows of a task, its loss, and the numbers to compare with."""
