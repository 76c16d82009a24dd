"""`python -m milestones`: the command `course`."""
from milestones.command import main

main()
