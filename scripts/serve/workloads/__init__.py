"""What few_shot.py and tree_of_thought.py share: prompts, engines, comparison and reports."""
